"""How what is to be kept is kept: one file a loss, each a config and a pure function.

A loss is added by writing its file and naming its config in `RetainLossConfig`.
"""

from typing import get_args

from grun.components import Components
from grun.retain_losses.ce import CeConfig
from grun.retain_losses.kl import KlConfig
from grun.retain_losses.pdu import PduConfig
from grun.retain_losses.retain_loss import RetainLoss
from grun.retain_losses.rmu_mse import RmuMseConfig

RetainLossConfig = CeConfig | KlConfig | PduConfig | RmuMseConfig
RETAIN_LOSSES = Components(
    field="retain_loss", kind=RetainLoss, own=get_args(RetainLossConfig), group="grun.retain_losses"
)
