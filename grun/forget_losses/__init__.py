"""How a model is made to forget: one file a loss, each a config and a pure function.

A loss is added by writing its file and naming its config in `ForgetLossConfig`.
"""

from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.forget_losses.idk import IdkConfig
from grun.forget_losses.npo import NpoConfig

ForgetLossConfig = GradAscentConfig | IdkConfig | NpoConfig
