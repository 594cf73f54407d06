"""How likely a model holds some answers, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from grun.data import Example
from grun.lm.begun import Begun
from grun.model.forward import Adapted


@dataclass(frozen=True, kw_only=True)
class TokenDetails:
    """An answer's tokens, one value each, EOS included."""

    nll: list[float]
    """Nats."""
    is_argmax: list[bool]
    """Whether no other token was likelier, the right ones before it given."""
    mean_log_p: list[float]
    """Mean and standard deviation of the log-probability, in nats, were the token drawn from the model itself."""
    std_log_p: list[float]


@dataclass(frozen=True, kw_only=True)
class AnswerLikelihood:
    """One answer."""

    nll: float
    """Token-summed, nats."""
    gate: list[float] | None
    """The prompt's gates by layer, where there are gates."""
    tokens: TokenDetails | None
    """Where they were asked for."""
    begun: Begun | None
    """Where those were, and the model would say something else."""


def prompt_batches(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, where what has one prompt stays together if it fits a batch."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_prompt.setdefault(example.prompt_ids, []).append(index)
    longest = {prompt: max(len(examples[index]) for index in rows) for prompt, rows in by_prompt.items()}
    batch: list[int] = []
    for prompt in sorted(by_prompt, key=lambda prompt: -longest[prompt]):
        rows = by_prompt[prompt]
        if batch and len(batch) + len(rows) > batch_size:
            yield batch
            batch = []
        *full, rest = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        yield from full
        batch = [*batch, *rest]
    if batch:
        yield batch


@torch.no_grad()
def answer_likelihoods(
    adapted: Adapted, examples: Sequence[Example], *, with_tokens: Sequence[bool], batch_size: int
) -> list[AnswerLikelihood]:
    """In the order of `examples`; batched by prompt and length, which changes no value beyond float rounding.

    with_tokens: for which of the examples to keep the details.
    """
    found: dict[int, AnswerLikelihood] = {}
    for rows in prompt_batches(examples, batch_size):
        output = adapted.answer_output([examples[row] for row in rows])
        scores = output.scores
        nll_B = scores.nll_B.tolist()
        gates: list[list[float]] | list[None] = [None] * len(rows)
        if output.gate_logit_BK is not None:
            gates = torch.sigmoid(output.gate_logit_BK).tolist()
        lengths = [len(examples[row].answer_ids) for row in rows]
        logits = output.logits_NV.split(lengths)
        labels, nlls = scores.label_N.split(lengths), scores.nll_N.split(lengths)
        for place, row in enumerate(rows):
            tokens = begun = None
            if with_tokens[row]:
                begun = output.begun.get(examples[row].prompt_ids)
                log_p_TV = logits[place].float().log_softmax(dim=-1)
                p_TV = log_p_TV.exp()
                mean_T = (p_TV * log_p_TV).sum(dim=-1)
                spread_TV = log_p_TV - mean_T[:, None]
                tokens = TokenDetails(
                    nll=nlls[place].tolist(),
                    is_argmax=(log_p_TV.argmax(dim=-1) == labels[place]).tolist(),
                    mean_log_p=mean_T.tolist(),
                    std_log_p=(p_TV * spread_TV.square()).sum(dim=-1).sqrt().tolist(),
                )
            found[row] = AnswerLikelihood(nll=nll_B[place], gate=gates[place], tokens=tokens, begun=begun)
    return [found[row] for row in range(len(examples))]
