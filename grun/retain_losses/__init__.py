"""How what is to be kept is kept: one file a loss, each a config and a pure function.

A loss is added by writing its file and naming its config in `RetainLossConfig`.
"""

from grun.retain_losses.ce import CeConfig
from grun.retain_losses.kl import KlConfig
from grun.retain_losses.rmu_mse import RmuMseConfig

RetainLossConfig = CeConfig | KlConfig | RmuMseConfig
