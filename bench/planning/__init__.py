"""What a study will need, found out before anything is paid for: its real code, run on tensors that hold nothing."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a study is to run on. Imports no torch, so that the command line reads its fields at no cost."""

    gpu: str = "h100-80gb"
    """Each worker's, e.g. a100-80gb; another name lists those that are known."""
    num_gpus: Annotated[int, Ge(1)] = 8
    """How many there are, for the hours by the clock."""
    price: Annotated[float, Ge(0)] | None = None
    """Dollars for one GPU and hour; None: no price is named."""
    mfu: Annotated[float, Gt(0), Le(1)] = 0.3
    """Share of the GPU's peak that training and scoring reach."""
    decode_ms: Annotated[float, Gt(0)] = 25.0
    """Milliseconds of a decoding step, all answers of a batch at once."""
