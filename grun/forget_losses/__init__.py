"""How a model is made to forget: one file a loss, each a config and a pure function.

A loss is added by writing its file and naming its config in `ForgetLossConfig`.
"""

from typing import get_args

from grun.components import Components
from grun.forget_losses.altpo import AltpoConfig
from grun.forget_losses.ce_u import CeUConfig
from grun.forget_losses.dpo import DpoConfig
from grun.forget_losses.forget_loss import ForgetLoss
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.forget_losses.idk import IdkConfig
from grun.forget_losses.npo import NpoConfig
from grun.forget_losses.pdu import PduConfig
from grun.forget_losses.rmu import RmuConfig
from grun.forget_losses.satimp import SatimpConfig
from grun.forget_losses.simnpo import SimnpoConfig
from grun.forget_losses.undial import UndialConfig
from grun.forget_losses.wga import WgaConfig

ForgetLossConfig = (
    AltpoConfig
    | CeUConfig
    | DpoConfig
    | GradAscentConfig
    | IdkConfig
    | NpoConfig
    | PduConfig
    | RmuConfig
    | SatimpConfig
    | SimnpoConfig
    | UndialConfig
    | WgaConfig
)
FORGET_LOSSES = Components(
    field="forget_loss", kind=ForgetLoss, own=get_args(ForgetLossConfig), group="grun.forget_losses"
)
