"""Shared maths of the losses: tensors in, tensors out.

Shapes: B sequences, N answer tokens of the whole batch, V vocabulary, K edited layers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """What a forget loss may look at, for one forget batch."""

    nll_B: Tensor
    """Token-summed negative log-likelihood of the loss's target (answer or refusal), nats a sequence."""
    num_tokens_B: Tensor
    """Tokens of the target, EOS included."""
    reference_nll_B: Tensor | None
    """The same nll under the untouched model, where the loss needs it."""


def token_nll(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """Negative log-likelihood of each answer token: [N], nats. Computed in float32 whatever the logits are."""
    return F.cross_entropy(logits_NV.float(), label_N, reduction="none")


def sequence_sum(value_N: Tensor, row_N: Tensor, num_sequences: int) -> Tensor:
    """Sum of a per-token value over each sequence: [B]."""
    return torch.zeros(num_sequences, dtype=value_N.dtype, device=value_N.device).index_add(0, row_N, value_N)


def mean_token_nll(nll_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """Mean over all answer tokens of the batch (long answers weigh more): scalar, nats per token."""
    return nll_B.sum() / num_tokens_B.sum()


def gate_bce(gate_logit_BK: Tensor, is_forget_B: Tensor) -> Tensor:
    """Binary cross-entropy of the gates, 1 on forget prompts and 0 on retain prompts: scalar, nats.

    Mean over layers and examples (GRUN, arXiv 2502.17823). Takes logits: a saturated sigmoid has no gradient.
    """
    target_BK = is_forget_B.to(gate_logit_BK.dtype)[:, None].expand_as(gate_logit_BK)
    return F.binary_cross_entropy_with_logits(gate_logit_BK, target_BK)
