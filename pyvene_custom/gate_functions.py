"""Which gates there are. A gate is added by writing its file and naming it here."""

from typing import Literal

from pyvene_custom.gates import Gate, TrainedGate
from pyvene_custom.mean_router import MeanRouterGate
from pyvene_custom.router import RouterGate

GateFunction = Literal["linear", "mlp_3", "mlp_5", "router", "mean_router"]
HIDDEN_WIDTHS: dict[str, tuple[int, ...]] = {"linear": (), "mlp_3": (256, 64), "mlp_5": (1024, 512, 256, 64)}


ROUTERS: dict[str, type[RouterGate]] = {"router": RouterGate, "mean_router": MeanRouterGate}


def new_gate(name: GateFunction, hidden_size: int) -> Gate:
    """A fresh gate; its random initial values come from torch's generator."""
    return ROUTERS[name](hidden_size) if name in ROUTERS else TrainedGate(hidden_size, HIDDEN_WIDTHS[name])


def reads_mean(name: GateFunction) -> bool:
    """See `Gate`."""
    return ROUTERS.get(name, TrainedGate).reads_mean
