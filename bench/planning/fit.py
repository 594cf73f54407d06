"""What does not fit, and the option that mends it."""

import math
from collections.abc import Sequence

from bench.models.cache import max_cache_gb
from bench.planning.fake.memory import Spent
from bench.planning.hours import Work

USABLE = 0.92
"""Share of a GPU's memory that tensors can fill: the rest is CUDA's and its libraries', and lies between tensors."""


def usable_bytes(work: Work) -> float:
    """Of one worker's GPU."""
    return USABLE * work.machine.memory_gb * 1e9


def too_large(work: Work, leave_out: Sequence[str] = ()) -> list[str]:
    """Parts of a run that do not fit, in the order of a run."""
    phases = work.rehearsed.phases.items()
    return [name for name, each in phases if name not in leave_out and each.spent.total > usable_bytes(work)]


def problem(work: Work) -> str | None:
    """The first thing that does not fit, in the order of a run, and what mends it, in one line; None: all fits."""
    if large := too_large(work):
        name, usable = large[0], usable_bytes(work)
        spent = work.rehearsed.phases[name].spent
        what = f"{name} takes {spent.total / 1e9:.1f} GB of the {usable / 1e9:.1f} that a GPU has for it"
        return f"{what}; {_mend(name, spent, work, usable)}"
    cache = work.storage_gb()["prefix_cache"]
    if cache > max_cache_gb():
        what = f"the prefix caches take {cache:.1f} GB of the {max_cache_gb():g} allowed on a node"
        return f"{what}; set GRUN_BENCH_CACHE_GB={math.ceil(cache)}"
    return None


def _mend(name: str, spent: Spent, work: Work, usable: float) -> str:
    """An option, with the number that by this peak is enough."""
    held = spent.total - spent.peak["activations"]
    room, own = usable - held, spent.peak["activations"]
    larger = f"use GPUs of {math.ceil(spent.total / USABLE / 1e9)} GB"
    if name == "attacks":
        return f"{larger}, or --evaluation.robustness.relearn_items 0: relearning trains every weight"
    if name in ("reference", "score", "decode"):
        size = math.floor(work.config.evaluation.batch_size * room / own)
        return f"use --evaluation.batch_size {size}" if size >= 1 else _spread(spent, work, usable) or larger
    if name not in ("teach", "train"):
        return larger
    execution, is_teaching = work.execution, name == "teach"
    trained = work.config.model.fine_tuning if is_teaching else work.config.training
    passes = math.ceil(execution.accumulation_steps * own / room) if room > 0 else math.inf
    if held > usable or passes * execution.num_workers > trained.batch_size:
        if is_teaching:
            use = "use" if work.config.adapter.trains_in_place else "make its models first: `grun-bench prepare` with"
            named = "name models that were taught it (model.fine_tuning.num_epochs 0, model.retain_model)"
            return f"{use} {_sharded(spent, work, usable)}, or {named}"
        return _spread(spent, work, usable) or larger
    checkpoint = ", or --gradient-checkpointing" if is_teaching or work.rehearsed.can_checkpoint else ""
    return f"use --accumulation-steps {passes}{checkpoint}"


def _spread(spent: Spent, work: Work, usable: float) -> str | None:
    """Over more workers, where it is the model's own weights that are trained."""
    if not work.config.adapter.trains_in_place:
        return None
    return f"use {_sharded(spent, work, usable)}"


def _sharded(spent: Spent, work: Work, usable: float) -> str:
    now = work.execution.num_workers
    return f"--shard --num-workers {max(now + 1, math.ceil(now * spent.total / usable))}"
