"""An unlearned model as lm-evaluation-harness sees one: the same prompts and scoring as everyone's, the module on.

Needs the optional package lm-eval. A module's edit sits on the last token of each request's context.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grun.data import Example, length_sorted_batches
from grun.errors import UserError
from grun.model.forward import Adapted
from grun.model.likelihood import answer_likelihoods

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError("--lm-eval", "needs the package lm-eval; pip install 'grun-bench[lm-eval]'") from None

MAX_GENERATED = 256
"""Tokens of an answer where a task does not say, as lm-eval's own models."""


class UnlearnedLM(TemplateLM):
    """A model with its adapter on."""

    def __init__(self, adapted: Adapted, tokenizer: Any, *, max_length: int, batch_size: int) -> None:
        """max_length: tokens of context and continuation together; longer contexts lose their beginning."""
        super().__init__()
        self.adapted, self.tokenizer = adapted, tokenizer
        self.max_length, self.batch_size = max_length, batch_size

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, which also stands for an empty context."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: BOS where the tokenizer has one."""
        return int(self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.eot_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Names lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, with the tokenizer's own special tokens unless the text begins with BOS or the caller says no."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each (_, context, continuation)."""
        examples = []
        for _, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            examples.append(Example(prompt_ids=tuple(context[-room:]), answer_ids=tuple(continuation)))
        found = answer_likelihoods(
            self.adapted, examples, with_tokens=[True] * len(examples), batch_size=self.batch_size
        )
        return [(-each.nll, each.tokens is not None and all(each.tokens.is_argmax)) for each in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of max_length."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, continuation = make_disjoint_window(window)
                windows.append((None, context, continuation))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, (log_likelihood, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first stop string. Raises UserError where they leave no room to ask."""
        prompts, limits, stops = [], [], []
        for request in requests:
            context, settings = request.args
            limit = int(settings.get("max_gen_toks", MAX_GENERATED))
            if limit >= self.max_length:
                raise UserError(
                    "--lm-eval",
                    f"a task asks for {limit} tokens of a model of {self.max_length}: none is left for the question; "
                    "set a lower max_gen_toks in its file",
                )
            prompts.append(tuple(self.tok_encode(context)[-(self.max_length - limit) :]))
            limits.append(limit)
            stops.append(handle_stop_sequences(settings.get("until"), eos=self.tokenizer.eos_token))
        texts = [""] * len(prompts)
        for rows in length_sorted_batches([len(prompt) for prompt in prompts], self.batch_size):
            generated = self.adapted.generate([prompts[row] for row in rows], max(limits[row] for row in rows))
            for row, answer in zip(rows, generated.answers, strict=True):
                text = self.tokenizer.decode(answer[: limits[row]], skip_special_tokens=True)
                for stop in stops[row]:
                    text = text.split(stop)[0] if stop else text
                texts[row] = text
        return texts


def run_lm_eval(model: UnlearnedLM, tasks: Sequence[str], *, include: Path | None, limit: int | None) -> dict[str, Any]:
    """lm-eval's own results: `results` by task, `samples` item by item, `versions`.

    include: a folder with further task files. limit: only so many items a task.
    Raises UserError where a task is unknown or its data cannot be read.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include) if include else None)
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise UserError("--lm-eval", f"{task} is no task of lm-eval; `lm-eval ls tasks` lists them")
    try:
        found = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0)
    except (OSError, ConnectionError) as error:
        raise UserError(
            "--lm-eval", f"a task's data cannot be read ({type(error).__name__}); go online, or name a local task"
        ) from error
    kept = {name: found[name] for name in ("results", "samples", "versions", "n-samples")}
    return dict(json.loads(json.dumps(kept, default=str)))
