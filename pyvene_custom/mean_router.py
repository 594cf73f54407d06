"""A router that reads all of a prompt: the mean of its tokens' hidden states, which other words change less."""

from typing import ClassVar

from pyvene_custom.router import RouterGate


class MeanRouterGate(RouterGate):
    """As a router in all but what it is told."""

    reads_mean: ClassVar[bool] = True
