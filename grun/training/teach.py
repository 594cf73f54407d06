"""One step of plain fine-tuning: how models are taught before anything is unlearned, and attacked afterwards."""

from collections.abc import Sequence

import torch

from grun.data import Example
from grun.model.forward import Adapted


def teach(adapted: Adapted, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> None:
    """Move what the optimizer holds once, by the mean nll of the examples' answer tokens; gradients clipped at 1."""
    loss = adapted.answer_output(examples).scores.nll_N.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
