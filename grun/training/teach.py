"""One step of plain fine-tuning: how models are taught before anything is unlearned, and attacked afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grun.data import Example
from grun.losses import token_nll
from grun.model.forward import Adapted


def teach(adapted: Adapted, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> None:
    """Move what the optimizer holds once, by the mean nll of the examples' answer tokens; gradients clipped at 1."""
    output = adapted.answer_output(examples)
    loss = token_nll(output.logits_NV, output.label_N).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
