"""Processes that train one model together: what each must do so that they agree with one alone.

Gradients of a step's parts are added up, never averaged: every part carries its share of the whole step (see
`grun.training.plan`). One process alone takes the same way and finds nothing to do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among the workers of a run; torch's default process group joins them where there are more."""

    rank: int = 0
    """From 0."""
    size: int = 1
    sharded: bool = False
    """Whether each holds only its part of the weights (FSDP2), so that all must run the same passes together."""

    @property
    def is_first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def share_of(self, things: Sequence[Any]) -> Sequence[Any]:
        """Those of some independent things to do that fall to this worker; all of them where weights are sharded."""
        return things if self.sharded else things[self.rank :: self.size]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the workers."""
        if self.size == 1:
            return
        if self.sharded:  # FSDP2 has reduced them already, to their mean
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.size)
            return
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters
        ]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, gradient in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the workers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def shared(self, make: Callable[[], Any]) -> Any:
        """What the first worker makes, in all of them."""
        if self.size == 1:
            return make()
        held = [make() if self.is_first else None]
        dist.broadcast_object_list(held)
        return held[0]

    def gather(self, things: list[Any]) -> list[Any]:
        """What all workers hold of some things that `share_of` dealt out, the first worker's first."""
        if self.size == 1 or self.sharded:
            return things
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, things)
        return [thing for own in everyone for thing in own]


ALONE = Workers()
