"""How long evaluations take: of gated edits at one threshold and at many, and of what was fine-tuned."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bench.evaluation.asking import Asking, drafts_of
from bench.evaluation.evaluate import evaluate
from bench.evaluation.reuse import evaluate_thresholds
from bench.speed.contenders import FINE_TUNED, Plainly
from bench.speed.stopwatch import LOSSES, Record, Stopwatch, once, timed
from grun.adapters.grun import set_gate_threshold
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted, PlainModel

CURVE = tuple(position / 20 for position in range(21))
"""Gate thresholds of the curve."""


def evaluation(watch: Stopwatch) -> Record:
    """One trained module: evaluated naively, and with all that can be reused, at one threshold and at 21."""
    adapted = watch.config.adapter.attach(watch.model, watch.config.seed)
    assert isinstance(adapted, EditedModel)
    adapted.use_prefix_caching(watch.caching("evaluation"))
    watch.train(adapted, LOSSES[0], watch.config.training.num_epochs, watch.data)
    naive, splits = adapted.on_plain_path(), watch.data.evaluation

    def asking(model: Adapted, decode_all: bool = False) -> Asking:
        return Asking(adapted=model, template=watch.template, config=watch.config.evaluation, decode_all=decode_all)

    base_s, base = timed(lambda: evaluate(asking(PlainModel(watch.model)), splits))

    def reused(*thresholds: float) -> list[list[Record]]:
        return evaluate_thresholds(asking(adapted), splits, thresholds, base)

    def plainly(threshold: float) -> list[Record]:
        set_gate_threshold(naive, threshold)
        return evaluate(asking(naive, decode_all=True), splits)

    first_s, (soft,) = timed(lambda: reused(0.0))
    # The threshold that shuts every gate off the forget set, whatever it does to the forget set itself.
    shut = math.nextafter(max(gate for row in soft if row["split"] != "forget" for gate in row["gate"]), math.inf)
    forget = [row for row in soft if row["split"] == "forget"]
    contenders: dict[str, Callable[[], Any]] = {
        "naive": lambda: plainly(0.0),
        "naive_shut": lambda: plainly(shut),
        "reused": lambda: reused(0.0),
        "reused_shut": lambda: reused(shut),
        "reused_curve": lambda: reused(*CURVE),
    }
    return {
        "items": len(soft),
        "base_model_s": base_s,
        "reused_empty_cache_s": first_s,
        "shut_threshold": shut,
        "forget_prompts_open_at_shut": sum(max(row["gate"]) >= shut for row in forget) / len(forget),
        **watch.rounds("evaluation", {name: partial(once, each) for name, each in contenders.items()}),
    }


def fine_tuned(watch: Stopwatch) -> Record:
    """LoRA and full fine-tuning that kept what they knew: each evaluated plainly, and with all that is read once."""
    splits = watch.data.evaluation
    target = evaluate(
        Asking(adapted=PlainModel(watch.model), template=watch.template, config=watch.config.evaluation), splits
    )

    def asked(adapted: Adapted, *, plainly: bool) -> Callable[[], list[Record]]:
        asking = Asking(
            adapted=adapted,
            template=watch.template,
            config=watch.config.evaluation,
            drafts={} if plainly else drafts_of(target),
            decode_all=plainly,
        )
        parts = [{split: items} for split, items in splits.items()] if plainly else [splits]
        return lambda: [row for part in parts for row in evaluate(asking, part)]

    contenders: dict[tuple[str, str], Callable[[], list[Record]]] = {}
    for name in FINE_TUNED:
        adapted = watch.contender(name, LOSSES[1], ())
        assert isinstance(adapted, PlainModel)
        watch.train(adapted, LOSSES[1], 1, watch.data)
        adapted.train(False)
        for how, model in (("naive", Plainly(adapted.model)), ("reused", adapted)):
            contenders[name, how] = asked(model, plainly=how == "naive")
    rows = {key: call() for key, call in contenders.items()}
    seconds = watch.rounds("evaluation, fine-tuned", {key: partial(once, call) for key, call in contenders.items()})
    return {
        name: {
            "naive": seconds[name, "naive"],
            "reused": seconds[name, "reused"],
            "items": len(target),
            "as_target": _alike(rows[name, "reused"], target),
            "as_naive": _alike(rows[name, "reused"], rows[name, "naive"]),
        }
        for name in FINE_TUNED
    }


def _alike(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> int:
    """Answers that are the same text."""
    return sum(row["generation"] == other["generation"] for row, other in zip(rows, others, strict=True))
