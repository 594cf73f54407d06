"""One step of AdamW, whatever is trained and minimised: all workers' gradients together, clipped."""

import zlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from grun.workers import ALONE, Workers


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """Fused: weights and moments are read once a step, which on a CPU takes a sixth of the time."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)


def take_step(
    optimizer: torch.optim.Optimizer,
    backward: Callable[[], Tensor],
    *,
    learning_rate: float,
    max_grad_norm: float = 1.0,
    workers: Workers = ALONE,
) -> list[float] | None:
    """Move what the optimizer holds. Returns what `backward` did of all workers; None where gradients were not finite,
    and nothing was moved.

    backward: adds this worker's gradients, and returns what is told of them: [N], summed over the workers.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    losses = backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    workers.sum_gradients(parameters)
    if not torch.isfinite(clip_grad_norm_(parameters, max_grad_norm)):
        return None
    optimizer.step()
    told: list[float] = workers.sum(losses).tolist()
    return told


def draw_anew(seed: int, step: int, workers: Workers) -> None:
    """Settle what dropout leaves out in a step, from 1: the same whenever training was begun or went on."""
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{workers.rank}".encode()))
