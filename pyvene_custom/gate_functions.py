"""Which gates there are. A gate is added by writing its file and naming it here."""

from typing import Literal

from pyvene_custom.gates import Gate, TrainedGate
from pyvene_custom.router import RouterGate

GateFunction = Literal["linear", "mlp_3", "mlp_5", "router"]
HIDDEN_WIDTHS: dict[str, tuple[int, ...]] = {"linear": (), "mlp_3": (256, 64), "mlp_5": (1024, 512, 256, 64)}


def new_gate(name: GateFunction, hidden_size: int) -> Gate:
    """A fresh gate; its random initial values come from torch's generator."""
    return RouterGate(hidden_size) if name == "router" else TrainedGate(hidden_size, HIDDEN_WIDTHS[name])
