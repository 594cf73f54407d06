"""Which gates there are. A gate is added by writing its file and naming it here."""

from typing import Literal

from pyvene_custom.gates import Gate, TrainedGate
from pyvene_custom.mean_router import MeanRouterGate
from pyvene_custom.router import RouterGate

GateFunction = Literal["linear", "mlp_3", "mlp_5", "router", "mean_router"]
HIDDEN_WIDTHS: dict[str, tuple[int, ...]] = {"linear": (), "mlp_3": (256, 64), "mlp_5": (1024, 512, 256, 64)}


def new_gate(name: GateFunction, hidden_size: int) -> Gate:
    """A fresh gate; its random initial values come from torch's generator."""
    if name in HIDDEN_WIDTHS:
        return TrainedGate(hidden_size, HIDDEN_WIDTHS[name])
    return MeanRouterGate(hidden_size) if name == "mean_router" else RouterGate(hidden_size)
