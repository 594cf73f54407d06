"""Where and how a run happens. Imports no torch, so that the command line reads its fields at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from bench.results.storage import Folder, Location, location
from grun.errors import UserError

if TYPE_CHECKING:
    import torch

    from bench.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a run happens; none of it changes the result beyond float rounding."""

    results: Folder
    """The results folder: a path, s3:// or gs://."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    engine: Literal["auto", "plain"] = "auto"
    """plain: all through pyvene, nothing reused, as a check."""
    num_threads: Annotated[int, Ge(1)] | None = None
    """torch's CPU threads; None: torch's own number, in a pool a worker's CPUs."""
    save_module: bool = True
    """Keep what was trained under RESULTS/modules."""
    num_workers: Annotated[int, Ge(1)] = 1
    """Processes that share a run, through Ray Train."""
    ray_train: Literal["auto", "always"] = "auto"
    """always: for one worker too, as a check."""
    cpus_per_worker: Annotated[int, Ge(1)] = 1
    """CPUs that a worker asks Ray for."""
    gpus_per_worker: Annotated[float, Ge(0)] | None = None
    """GPUs likewise, fractions share one; None: in a pool one where the cluster has any, else none."""
    accumulation_steps: Annotated[int, Ge(1)] = 1
    """Passes that a worker cuts a step into, for memory."""
    gradient_checkpointing: bool = False
    """full, lora: compute activations again on the way back, for memory."""
    shard: bool = False
    """full: each worker holds a part of the weights (FSDP2)."""

    @property
    def folder(self) -> Location:
        """The results folder, as a place to read and write."""
        return location(self.results)

    @property
    def uses_ray_train(self) -> bool:
        """Whether a run's work happens in workers of Ray Train."""
        return self.num_workers > 1 or self.ray_train == "always"

    @property
    def trial_threads(self) -> int:
        """torch's CPU threads of each trial in a pool."""
        return self.num_threads or self.cpus_per_worker

    def torch_device(self) -> torch.device:
        """The device itself. Raises UserError where there is no such one."""
        import torch

        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device", "cuda was asked for, but torch sees no GPU; use --device cpu")
        return torch.device(device)

    def check(self, config: RunConfig) -> None:
        """Raises UserError where that run cannot happen in this way."""
        adapter, evaluation = config.adapter, config.evaluation
        if self.shard and adapter.trains and not adapter.trains_in_place:
            raise UserError("--shard", f"splits weights that are trained, and {adapter.name} trains none; leave it out")
        if self.shard and not self.uses_ray_train:
            raise UserError("--shard", "splits the weights over workers, and there is one; use --num-workers 2 or more")
        quantizes = evaluation.robustness is not None and evaluation.robustness.quantize
        if self.shard and (quantizes or evaluation.after == "4_bit"):
            field = "evaluation.robustness.quantize" if quantizes else "evaluation.after"
            problem = "rounds a copy of the model, and one that is sharded cannot be copied; leave it out"
            raise UserError(field, problem)
