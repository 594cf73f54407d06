"""Gradients of the weights under an adapter: for an attacker who trains them, and for one who looks at their size."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from grun.data import Example
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted, PlainModel
from grun.sharding import whole


@contextlib.contextmanager
def weights_open(adapted: Adapted) -> Iterator[tuple[Adapted, list[nn.Parameter]]]:
    """Inside, every weight under the adapter can get a gradient; then all is as before.

    Yields the model, the adapter on, on a path that leads back to the weights, and the weights themselves.
    """
    assert isinstance(adapted, EditedModel | PlainModel)
    opened = adapted.afresh() if isinstance(adapted, EditedModel) else adapted
    parameters = list(adapted.model.parameters())
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield opened, parameters
    finally:
        for parameter, trains in zip(parameters, trained, strict=True):
            parameter.requires_grad_(trains)
            parameter.grad = None


def gradient_norms(adapted: Adapted, examples: Sequence[Example]) -> list[float]:
    """Of each answer's mean token nll: the mean over all weight tensors of the gradient's Euclidean norm.

    That of an answer which was learned is small. arXiv 2402.17012, as open-unlearning has it.
    """
    norms = []
    with weights_open(adapted) as (opened, parameters):
        for example in examples:
            opened.answer_output([example]).scores.nll_N.mean().backward()
            found = [whole(parameter.grad).norm() for parameter in parameters if parameter.grad is not None]
            norms.append(torch.stack(found).float().mean().item())
            for parameter in parameters:
                parameter.grad = None
    return norms
