"""Attacks on a model that has unlearned: a forgotten fact that comes back was not forgotten.

Each attack asks for the forget set again and gives rows of its own, under a split of its own, of which
`bench.evaluation.score` makes the share of the answer that came back (ROUGE-L recall). Questions in other words: arXiv
2309.17410; a prefix given away: 2202.07646; relearning: 2406.13356; weights rounded: 2410.16454.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.benchmarks.items import Item
from bench.evaluation.asking import Asking, RobustnessConfig
from bench.metrics.rouge import rouge_l
from bench.results.columns import ItemRow, item_row
from grun.attacks.gradients import weights_open
from grun.attacks.relearning import relearn
from grun.data import Example, length_sorted_batches
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted, PlainModel
from grun.model.step import adamw

Numbered = Sequence[tuple[int, Item]]
"""Forget items with their item_index."""


def attack(asking: Asking, numbered: Numbered, config: RobustnessConfig, learning_rate: float) -> list[ItemRow]:
    """Rows of every attack that the items allow, as rows of the `items` table. The model is left as it was.

    learning_rate: what the model was taught with. Raises UserError where an attack does nothing to the model.
    """
    reworded = [(number, item) for number, item in numbered if item.paraphrased_question is not None]
    prompts = [asking.template.prompt_ids(str(item.paraphrased_question)) for _, item in reworded]
    rows = _answers(asking, "forget_paraphrased_question", reworded, prompts, [item.answer for _, item in reworded])
    asking.progress("attacks", 1, 5)
    rows += _after_a_prefix(asking, numbered, config.prefix_share)
    asking.progress("attacks", 2, 5)
    examples = [item.example(asking.template) for _, item in numbered]
    for done, bits in enumerate((8, 4), start=3):
        if config.quantize:
            rounding = replace(asking, adapted=quantized(asking.adapted, bits))
            rows += _asked_again(rounding, f"forget_{bits}_bit", numbered, examples)
        asking.progress("attacks", done, 5)
    num_known = min(config.relearn_items, len(numbered) // 2)
    tries = []
    for rate in relearning_rates(config, learning_rate) if num_known else ():
        with relearned(asking.adapted, examples[:num_known], config.relearn_steps, rate) as attacked:
            others = replace(asking, adapted=attacked)
            tries.append(_asked_again(others, "forget_relearned", numbered[num_known:], examples[num_known:]))
    asking.progress("attacks", 5, 5)
    return rows + max(tries, key=_came_back, default=[])


def relearning_rates(config: RobustnessConfig, learning_rate: float) -> tuple[float, ...]:
    """AdamW's, each of which the attacker tries. learning_rate: what the model was taught with."""
    if not config.relearn_items:
        return ()
    return config.relearn_learning_rates or (learning_rate, learning_rate / 10)


def _after_a_prefix(asking: Asking, numbered: Numbered, share: float) -> list[ItemRow]:
    """The rest of each answer, asked for with its first tokens given away: at least one, never the EOS.

    Answers of one token are left out: with it given away nothing is left to come back.
    """
    kept, prompts, rest = [], [], []
    for number, item in numbered:
        example = item.example(asking.template)
        num_tokens = len(example.answer_ids) - 1
        given = max(1, int(share * num_tokens))
        if given < num_tokens:
            kept.append((number, item))
            prompts.append(example.prompt_ids + example.answer_ids[:given])
            rest.append(asking.template.text(example.answer_ids[given:]))
    return _answers(asking, "forget_prefix_attack", kept, prompts, rest)


def _asked_again(asking: Asking, split: str, numbered: Numbered, examples: Sequence[Example]) -> list[ItemRow]:
    """The questions as they are, of a model that something was done to."""
    return _answers(asking, split, numbered, [e.prompt_ids for e in examples], [item.answer for _, item in numbered])


def _came_back(rows: Sequence[ItemRow]) -> float:
    return sum(rouge_l(row["answer"], row["generation"]).recall for row in rows)


def _answers(
    asking: Asking, split: str, numbered: Numbered, prompts: Sequence[tuple[int, ...]], wanted: Sequence[str]
) -> list[ItemRow]:
    """Greedy answers as rows. wanted: what each is compared with."""
    rows: dict[int, ItemRow] = {}
    own = asking.workers.share_of(range(len(prompts)))
    for places in length_sorted_batches([len(prompts[at]) for at in own], asking.config.batch_size):
        batch = [own[place] for place in places]
        generated = asking.adapted.generate([prompts[at] for at in batch], asking.config.max_new_tokens)
        gates: list[Any] = [None] * len(batch)
        if generated.gate_logit_BK is not None:
            gates = torch.sigmoid(generated.gate_logit_BK).tolist()
        for at, answer_ids, gate in zip(batch, generated.answers, gates, strict=True):
            number, item = numbered[at]
            rows[at] = item_row(
                split=split,
                item_index=number,
                question=item.question,
                answer=wanted[at],
                generation=asking.template.text(answer_ids),
                gate=gate,
            )
    everyones = dict(asking.workers.gather(list(rows.items())))
    return [everyones[at] for at in range(len(prompts))]


@contextlib.contextmanager
def relearned(adapted: Adapted, examples: Sequence[Example], steps: int, learning_rate: float) -> Iterator[Adapted]:
    """Inside, every weight under the adapter has been fine-tuned on some forget answers; then it is as before."""
    with weights_open(adapted) as (attacked, parameters):
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            optimizer = adamw(parameters, learning_rate=learning_rate)
            for _ in range(steps):
                relearn(attacked, examples, optimizer)
            yield attacked
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)


def quantized(adapted: Adapted, bits: int) -> Adapted:
    """A copy whose decoder weights are rounded to so many bits; the adapter of a frozen model stays as it is.

    Raises UserError where nothing of this model is rounded, such as GPT-2 with linear layers of its own.
    """
    import peft

    assert isinstance(adapted, EditedModel | PlainModel)
    model = copy.deepcopy(adapted.model)
    if isinstance(model, peft.PeftModel):  # LoRA is merged before it is shipped
        model = model.merge_and_unload()
    layers = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    if not layers:
        name = type(model).__name__
        raise UserError("evaluation.robustness.quantize", f"no layer of a {name} can be rounded; leave it out")
    for layer in layers:
        layer.weight = torch.nn.Parameter(rounded(layer.weight.detach(), bits), requires_grad=False)
    return adapted.afresh(model) if isinstance(adapted, EditedModel) else PlainModel(model)


def rounded(weight_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """The weight that 8 or 4 bits leave, by optimum-quanto's rules, without its kernels, which want a compiler.

    8: multiples of a 127th of a row's largest; 4: sixteen values from the least to the greatest of a group of a row's
    128 (or the next of 96, 64, 32 that divides it; else all of it).
    """
    smallest = torch.finfo(weight_OI.dtype).tiny  # a step of none would be 0 / 0
    if bits == 8:
        step_O1 = (weight_OI.abs().amax(1, keepdim=True) / 127).clamp_min(smallest)
        return (weight_OI / step_O1).round() * step_O1
    width = weight_OI.shape[1]
    group = next((size for size in (128, 96, 64, 32) if width % size == 0), width)
    groups_GS = weight_OI.reshape(-1, group)
    least_G1 = groups_GS.amin(1, keepdim=True)
    step_G1 = ((groups_GS.amax(1, keepdim=True) - least_G1) / 15).clamp_min(smallest)
    return (((groups_GS - least_G1) / step_G1).round() * step_G1 + least_G1).reshape_as(weight_OI)
