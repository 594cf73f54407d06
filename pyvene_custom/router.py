"""A gate in closed form that knows when it does not know: ridge regression on random features, with a class "keep".

Shapes: B prompts, X prompts that it is fitted to, D hidden size, F random features, K requests.
"""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from pyvene_custom.gates import Gate, Gates

NUM_FEATURES = 3000
RIDGE = 10.0
FEATURE_SEED = 0
BLOCK = 256  # rows of the kernel that are worked out at once
CPU = torch.device("cpu")
SHUT, LEAST_OPEN = 1e-6, 1e-3
"""The gate's value where another request or "keep" is likelier, and the least one where it is not."""


class _Known:
    """What one request's gate is told: hidden states, and in a last column 1 for those to be forgotten; read-only."""

    def __init__(self, state: Tensor) -> None:
        """state: [X, D + 1], on the CPU."""
        self.state = state
        self.keep_digest = hashlib.sha256(_name(self.keep_XD)).digest()
        self.digest = hashlib.sha256(_name(self.forget_XD)).digest() + self.keep_digest

    @property
    def forget_XD(self) -> Tensor:
        """Hidden states of those to be forgotten."""
        return self.state[self.state[:, -1] > 0, :-1]

    @property
    def keep_XD(self) -> Tensor:
        """Hidden states of the others."""
        return self.state[self.state[:, -1] == 0, :-1]


class Routed(nn.Module):
    """The gates of some requests, fitted together."""

    def __init__(self, known: Sequence[_Known]) -> None:
        """known: of each request."""
        super().__init__()
        self._known = known
        self._in_use: tuple[_Router, ...] = (_router(known, CPU),)  # a tuple: it is others' part, too

    def logit(self, h_BD: Tensor) -> Tensor:
        """See `Gates`."""
        if not self._in_use or self._in_use[0].weight_FK.device != h_BD.device:
            self._in_use = (_router(self._known, h_BD.device),)
        return self._in_use[0].logit(h_BD)

    def opened(self, gate_BK: Tensor) -> Tensor:
        """See `Gates`. An open gate is wholly open: there is nothing to be soft about where nothing was trained through
        it."""
        return (gate_BK > (SHUT + LEAST_OPEN) / 2).float()


class RouterGate(Routed):
    """Open where its request's score is above that of "keep"; the score, as far as it lies in (0, 1), is its value.

    Stacked, the gates of all requests are fitted again together, each request a class of its own: the same whatever
    their order, and without one of them the same, bit for bit, as if it had never been.
    """

    is_fitted: ClassVar[bool] = True
    reads_mean: ClassVar[bool] = False

    def __init__(self, hidden_size: int) -> None:
        super().__init__([_Known(torch.zeros(0, hidden_size + 1))])

    def fit(self, h_BD: Tensor, is_forget_B: Tensor) -> None:
        """See `Gate`."""
        self.set_extra_state(torch.cat([h_BD.float(), is_forget_B[:, None].float().to(h_BD.device)], dim=1).cpu())

    def get_extra_state(self) -> Tensor:
        """What it was fitted to, for torch's state dicts: hidden states, and in a last column 1 for forget prompts."""
        return self._known[0].state

    def set_extra_state(self, state: Tensor) -> None:
        """Fit it to what an earlier one was fitted to; worked out when it is asked, which one of a stack never is."""
        self._known, self._in_use = [_Known(state)], ()

    @staticmethod
    def stack(gates: Sequence[Gate]) -> Gates:
        """See `Gate`."""
        routers = [gate for gate in gates if isinstance(gate, RouterGate)]
        if len(routers) < len(gates) or len({router.reads_mean for router in routers}) > 1:
            raise ValueError("a router stacks with routers of its kind alone")
        return Routed([router._known[0] for router in routers])


class _Router(nn.Module):
    """φ(h) = (relu(h̃ P), 1), h̃ standardised; W = argmin ‖φ(H) W − Y‖² + λ‖W‖², Y one-hot over requests and "keep"."""

    mean_D: Tensor
    scale_D: Tensor
    projection_DF: Tensor
    bias_F: Tensor
    weight_FK: Tensor
    column_K: Tensor

    def __init__(self, known: Sequence[_Known]) -> None:
        super().__init__()
        # Worked out in an order of their own, so that the order of the requests does not even touch rounding.
        order = sorted(range(len(known)), key=lambda place: known[place].digest)
        h_XD, target_XK = _training_set([known[place] for place in order])
        hidden_size = h_XD.shape[1]
        generator = torch.Generator().manual_seed(FEATURE_SEED)
        projection_DF = torch.randn(hidden_size, NUM_FEATURES, generator=generator) / hidden_size**0.5
        with_one = nn.functional.pad(projection_DF, (0, 1))  # the last feature is 1
        self.register_buffer("projection_DF", with_one.double(), persistent=False)
        self.register_buffer("bias_F", (torch.arange(NUM_FEATURES + 1) == NUM_FEATURES).double(), persistent=False)
        self.register_buffer("mean_D", h_XD.mean(dim=0), persistent=False)
        self.register_buffer("scale_D", h_XD.std(dim=0, correction=0).clamp(min=1e-6), persistent=False)
        feature_XF = self._features(h_XD)
        self.register_buffer("weight_FK", _ridge(feature_XF, target_XK), persistent=False)
        self.register_buffer("column_K", torch.tensor(order).argsort(), persistent=False)
        self.float()
        self._last: tuple[Tensor, Tensor] | None = None

    def logit(self, h_BD: Tensor) -> Tensor:
        """See `Gates`. The edits of all layers ask about one tensor in turn, and it is read once."""
        if self._last is None or self._last[0] is not h_BD:
            self._last = h_BD, self._logit(h_BD)
        return self._last[1]

    def _logit(self, h_BD: Tensor) -> Tensor:
        score_BK = self._features(h_BD.float()) @ self.weight_FK
        is_first_BK = torch.zeros_like(score_BK, dtype=torch.bool).scatter(1, score_BK.argmax(dim=1)[:, None], True)
        gate_BK = torch.where(is_first_BK, score_BK.clamp(LEAST_OPEN, 1 - SHUT), SHUT)
        return torch.logit(gate_BK[:, self.column_K])

    def _features(self, h_BD: Tensor) -> Tensor:
        return torch.addmm(self.bias_F, (h_BD - self.mean_D) / self.scale_D, self.projection_DF).relu_()


_IN_USE: WeakValueDictionary[tuple[Any, ...], _Router] = WeakValueDictionary()


def _router(known: Sequence[_Known], device: torch.device) -> _Router:
    """That fitted to these: one for all edits behind it, whose gates were told the same."""
    name = (*(each.digest for each in known), device)
    router = _IN_USE.get(name)
    if router is None:
        router = _IN_USE[name] = _Router(known) if device.type == "cpu" else deepcopy(_router(known, CPU)).to(device)
    return router


def _ridge(feature_XF: Tensor, target_XK: Tensor) -> Tensor:
    """W, [F, K]: by the dual form where there are fewer prompts than features, so that the smaller system is solved."""
    is_dual = len(feature_XF) < feature_XF.shape[1]
    factor = torch.linalg.cholesky(_kernel(feature_XF if is_dual else feature_XF.T))
    if is_dual:
        return feature_XF.T @ torch.cholesky_solve(target_XK, factor)
    return torch.cholesky_solve(feature_XF.T @ target_XK, factor)


def _kernel(rows_NM: Tensor) -> Tensor:
    """M Mᵀ + λ I, [N, N], but right of the diagonal's blocks, which Cholesky's decomposition skips, anything."""
    kernel_NN = rows_NM.new_empty(len(rows_NM), len(rows_NM))
    for end in range(BLOCK, len(rows_NM) + BLOCK, BLOCK):
        rows = slice(end - BLOCK, end)
        kernel_NN[rows, :end] = rows_NM[rows] @ rows_NM[:end].T
    kernel_NN.diagonal().add_(RIDGE)
    return kernel_NN


def _training_set(known: Sequence[_Known]) -> tuple[Tensor, Tensor]:
    """Every prompt once, [X, D] in float64, and 1 for its class among the requests and "keep", [X, K]: one-hot, but for
    what several requests want forgotten, which is wholly each one's.

    A prompt that one request wants forgotten is not kept, whatever the others say; where there is none at all, a zero
    vector is kept.
    """
    forget: dict[bytes, tuple[Tensor, list[int]]] = {}
    for place, each in enumerate(known):
        for row in each.forget_XD:
            forget.setdefault(_name(row), (row, []))[1].append(place)
    blocks = {each.keep_digest: each for each in known}  # most keep the same
    keep = {_name(row): row for each in blocks.values() for row in each.keep_XD}
    kept = [(keep[name], [len(known)]) for name in sorted(keep.keys() - forget.keys())]
    labelled = [*forget.values(), *kept] or [(known[0].state.new_zeros(known[0].state.shape[1] - 1), [len(known)])]
    h_XD = torch.stack([row for row, _ in labelled]).double()
    target_XK = torch.zeros(len(labelled), len(known) + 1, dtype=torch.float64)
    ones = [(row, place) for row, (_, places) in enumerate(labelled) for place in places]
    target_XK[tuple(torch.tensor(ones).T)] = 1.0
    return h_XD, target_XK


def _name(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
