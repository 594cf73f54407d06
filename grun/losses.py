"""Shared maths of the losses: tensors in, tensors out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Need = Literal["nll", "logits", "hidden"]
"""What a loss may need of the untouched model."""
Positions = Literal["answer", "all"]
"""Which tokens a loss looks at: the answers', or all of the sequences' (but each first one, which nothing predicts)."""
Unit = Literal["tokens", "later_tokens", "sequences"]
"""What a loss is a mean over: an answer's tokens, those behind its first one, or answers."""


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """What a loss may look at: B answers under the model, and what it needs of the untouched model."""

    logits_NV: Tensor
    """Logits that predict each token."""
    label_N: Tensor
    """The tokens, EOS included."""
    nll_N: Tensor
    """Negative log-likelihood of each token, nats."""
    nll_B: Tensor
    """The same, summed over each sequence."""
    num_tokens_B: Tensor
    hidden_ND: Tensor | None = None
    """Output of the loss's hidden layer where each token is predicted, where the loss has one."""
    reference_nll_B: Tensor | None = None
    """nll_B, logits and hidden states of the untouched model, where the loss needs them."""
    reference_logits_NV: Tensor | None = None
    reference_hidden_ND: Tensor | None = None

    @property
    def change_B(self) -> Tensor:
        """nll_B above the untouched model's: [B], nats. For losses whose reference is `nll`."""
        assert self.reference_nll_B is not None
        return self.nll_B - self.reference_nll_B

    @property
    def is_first_N(self) -> Tensor:
        """bool: whether a token is the first of its answer: [N]."""
        first_B = self.num_tokens_B.cumsum(0) - self.num_tokens_B
        return torch.zeros_like(self.label_N, dtype=torch.bool).index_fill(0, first_B, True)

    @classmethod
    def of(cls, logits_NV: Tensor, answers: Sequence[Sequence[int]], **of_hidden_and_reference: Tensor | None) -> Self:
        """answers: token ids of each sequence's answer; the logits follow one another likewise."""
        device = logits_NV.device
        label_N = torch.tensor([token for answer in answers for token in answer], device=device)
        num_tokens_B = torch.tensor([len(answer) for answer in answers], device=device)
        row_N = torch.repeat_interleave(torch.arange(len(answers), device=device), num_tokens_B)
        nll_N = token_nll(logits_NV, label_N)
        return cls(
            logits_NV=logits_NV,
            label_N=label_N,
            nll_N=nll_N,
            nll_B=sequence_sum(nll_N, row_N, len(answers)),
            num_tokens_B=num_tokens_B,
            **of_hidden_and_reference,
        )


ForgetScores = Mapping[str, AnswerScores]
"""Target → what the forget items say of it, in the same order for each target."""


def num_units(num_tokens: Iterable[int], unit: Unit) -> int:
    """How many there are to take the mean over. num_tokens: of each answer."""
    return sum(1 if unit == "sequences" else count - (unit == "later_tokens") for count in num_tokens)


def token_nll(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """Negative log-likelihood of each answer token: [N], nats. Computed in float32 whatever the logits are."""
    return F.cross_entropy(logits_NV.float(), label_N, reduction="none")


def sequence_sum(value_N: Tensor, row_N: Tensor, num_sequences: int) -> Tensor:
    """Sum of a per-token value over each sequence: [B]."""
    return torch.zeros(num_sequences, dtype=value_N.dtype, device=value_N.device).index_add(0, row_N, value_N)


def kl_divergence(reference_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """KL(reference ‖ model), mean over tokens: scalar, nats per token. TOFU, arXiv 2401.06121."""
    reference_NV = F.log_softmax(reference_logits_NV.float(), dim=-1)
    return F.kl_div(F.log_softmax(logits_NV.float(), dim=-1), reference_NV, reduction="batchmean", log_target=True)


def mean_token_nll(nll_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """Mean over all answer tokens of the batch (long answers weigh more): scalar, nats per token."""
    return nll_B.sum() / num_tokens_B.sum()


def gate_bce(gate_logit_BK: Tensor, is_forget_B: Tensor) -> Tensor:
    """Binary cross-entropy of the gates, 1 on forget prompts and 0 on retain prompts: scalar, nats.

    Mean over layers and examples (GRUN, arXiv 2502.17823). Takes logits: a saturated sigmoid has no gradient.
    """
    target_BK = is_forget_B.to(gate_logit_BK.dtype)[:, None].expand_as(gate_logit_BK)
    return F.binary_cross_entropy_with_logits(gate_logit_BK, target_BK)
