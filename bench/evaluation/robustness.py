"""Attacks on a model that has unlearned: a forgotten fact that comes back was not forgotten.

Each attack asks for the forget set again and gives rows of its own, under a split of its own, of which
`bench.evaluation.score` makes the share of the answer that came back (ROUGE-L recall).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt, MinLen

from bench.benchmarks.items import Item
from bench.metrics.rouge import rouge_l
from bench.results.columns import ItemRow, item_row
from grun.data import length_sorted_batches
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.losses import token_nll
from grun.model.forward import Adapted, PlainModel
from grun.prompts.template import PromptTemplate
from grun.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """Which attacks, and how hard."""

    prefix_share: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Share of the answer's tokens that the prefix attack gives away, at least one."""
    relearn_items: Annotated[int, Ge(1)] = 10
    """Forget items that the attacker has, at most half of them; the others' answers are what must not come back."""
    relearn_steps: Annotated[int, Ge(1)] = 10
    """Steps on all of them at once, of every weight, the adapter left on."""
    relearn_learning_rates: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] | None = None
    """AdamW's learning rates, each tried; the one that brings most back counts. None: model.fine_tuning's and a tenth
    of it."""
    quantize: bool = False
    """Also ask with weights in 8 and in 4 bits; needs optimum-quanto, see `pip install 'grun-bench[quantize]'`."""


def attack(
    adapted: Adapted,
    template: PromptTemplate,
    numbered: Sequence[tuple[int, Item]],
    config: RobustnessConfig,
    *,
    learning_rate: float,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[str, int, int], None],
    workers: Workers = ALONE,
) -> list[ItemRow]:
    """Rows of every attack that the items allow, as rows of the `items` table. The model is left as it was.

    numbered: forget items with their item_index. learning_rate: what the model was taught with.
    workers: they share out the questions; every one gets all rows.
    Raises UserError where a library is missing.
    """
    ask = _Asker(template, max_new_tokens, batch_size, workers)
    rows: list[ItemRow] = []
    questions = [(number, item) for number, item in numbered if item.paraphrased_question is not None]
    prompts = [template.prompt_ids(str(item.paraphrased_question)) for _, item in questions]
    rows += ask(adapted, "forget_paraphrased_question", questions, prompts, [item.answer for _, item in questions])
    progress("attacks", 1, 5)

    examples = [item.example(template) for _, item in numbered]
    given = [max(1, int(config.prefix_share * (len(e.answer_ids) - 1))) for e in examples]  # never the EOS
    prompts = [e.prompt_ids + e.answer_ids[:k] for e, k in zip(examples, given, strict=True)]
    rest = [template.text(e.answer_ids[k:]) for e, k in zip(examples, given, strict=True)]
    rows += ask(adapted, "forget_prefix_attack", numbered, prompts, rest)
    progress("attacks", 2, 5)

    prompts = [example.prompt_ids for example in examples]
    answers = [item.answer for _, item in numbered]
    for done, bits in enumerate((8, 4), start=3):
        if config.quantize:
            rows += ask(_quantized(adapted, bits), f"forget_{bits}_bit", numbered, prompts, answers)
        progress("attacks", done, 5)

    num_known = min(config.relearn_items, len(numbered) // 2)
    strongest: list[ItemRow] = []
    for rate in config.relearn_learning_rates or (learning_rate, learning_rate / 10):
        with _relearned(adapted, examples[:num_known], config.relearn_steps, rate) as relearned:
            asked = ask(relearned, "forget_relearned", numbered[num_known:], prompts[num_known:], answers[num_known:])
        strongest = max(strongest, asked, key=_came_back)
    progress("attacks", 5, 5)
    return rows + strongest


def _came_back(rows: Sequence[ItemRow]) -> float:
    return sum(rouge_l(row["answer"], row["generation"]).recall for row in rows)


class _Asker:
    """Greedy answers as rows."""

    def __init__(self, template: PromptTemplate, max_new_tokens: int, batch_size: int, workers: Workers) -> None:
        self.template, self.max_new_tokens, self.batch_size = template, max_new_tokens, batch_size
        self.workers = workers

    def __call__(
        self,
        adapted: Adapted,
        split: str,
        numbered: Sequence[tuple[int, Item]],
        prompts: Sequence[tuple[int, ...]],
        wanted: Sequence[str],
    ) -> list[ItemRow]:
        rows: dict[int, ItemRow] = {}
        own = self.workers.share_of(range(len(prompts)))
        for places in length_sorted_batches([len(prompts[at]) for at in own], self.batch_size):
            batch = [own[place] for place in places]
            generated = adapted.generate([prompts[at] for at in batch], self.max_new_tokens)
            gates: list[Any] = [None] * len(batch)
            if generated.gate_logit_BK is not None:
                gates = torch.sigmoid(generated.gate_logit_BK).tolist()
            for at, answer_ids, gate in zip(batch, generated.answers, gates, strict=True):
                rows[at] = item_row(
                    split=split,
                    item_index=numbered[at][0],
                    question=numbered[at][1].question,
                    answer=wanted[at],
                    generation=self.template.text(answer_ids),
                    gate=gate,
                )
        everyones = dict(self.workers.gather(list(rows.items())))
        return [everyones[at] for at in range(len(prompts))]


@contextlib.contextmanager
def _relearned(adapted: Adapted, examples: Sequence[Any], num_steps: int, learning_rate: float) -> Iterator[Adapted]:
    """Inside, every weight under the adapter has been fine-tuned on some forget answers; then it is as before."""
    assert isinstance(adapted, EditedModel | PlainModel)
    attacked = adapted.on_plain_path() if isinstance(adapted, EditedModel) else adapted
    parameters = list(adapted.model.parameters())
    before = [(parameter.detach().clone(), parameter.requires_grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        for _ in range(num_steps):
            output = attacked.answer_output(examples)
            loss = token_nll(output.logits_NV, output.label_N).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        yield attacked
    finally:
        with torch.no_grad():
            for parameter, (value, trains) in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(trains)
                parameter.grad = None


def _quantized(adapted: Adapted, bits: int) -> Adapted:
    """A copy whose decoder weights are rounded to so many bits; the adapter of a frozen model stays as it is."""
    import peft

    try:
        from optimum import quanto
    except ImportError:
        raise UserError(
            "evaluation.robustness.quantize", "needs optimum-quanto; pip install 'grun-bench[quantize]'"
        ) from None
    assert isinstance(adapted, EditedModel | PlainModel)
    model = copy.deepcopy(adapted.model)
    if isinstance(model, peft.PeftModel):  # LoRA is merged before it is shipped
        model = model.merge_and_unload()
    quanto.quantize(model, weights=quanto.qint8 if bits == 8 else quanto.qint4, exclude="lm_head")
    quanto.freeze(model)
    return adapted.on_plain_path(model) if isinstance(adapted, EditedModel) else PlainModel(model)
