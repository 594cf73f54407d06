"""Gates fitted to hidden states alone, and which of them open.

Shapes: X prompts, D hidden size, K requests.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.gating.sets import GateSets
from bench.gating.states import Prompt
from grun.data import paired_batches
from grun.errors import UserError
from grun.losses import gate_bce
from grun.model.step import adamw, take_step
from grun.sequential import CombinedGates
from grun.training.recipe import Recipe
from pyvene_custom.edits import Gated
from pyvene_custom.gate_functions import GateFunction, new_gate
from pyvene_custom.gates import Gate

States = Mapping[Prompt, Tensor]


def fitted_gates(
    gate_function: GateFunction, sets: GateSets, hidden: States, recipe: Recipe, tell: Callable[[int, int], None]
) -> CombinedGates:
    """A gate a request, all fitted to open for its own prompts and to stay shut for the kept ones.

    A gate that is trained is trained by GRUN's gate loss on these states, without the loss of an edit behind it.
    tell: called with (requests done, of how many). Raises UserError where that training diverges.
    """
    keep_XD = _rows(hidden, sets.keep)
    members: dict[str, Gated] = {}
    for name, prompts in sets.requests.items():
        own_XD = _rows(hidden, prompts)
        member = Gated()
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)  # as each request's module begins
            member.gate = new_gate(gate_function, keep_XD.shape[1])
        member.gate.fit(torch.cat([own_XD, keep_XD]), torch.arange(len(own_XD) + len(keep_XD)) < len(own_XD))
        if not member.gate.is_fitted:
            _train(member.gate, own_XD, keep_XD, recipe)
        members[name] = member
        tell(len(members), len(sets.requests))
    return CombinedGates(members, "sum", 0.0)


def _train(gate: Gate, own_XD: Tensor, keep_XD: Tensor, recipe: Recipe) -> None:
    training = recipe.training
    assert isinstance(gate, torch.nn.Module)
    optimizer = adamw(gate.parameters(), learning_rate=recipe.learning_rate, weight_decay=training.weight_decay)
    pairs = paired_batches(
        [range(len(own_XD))],
        len(keep_XD),
        batch_size=training.batch_size,
        num_epochs=training.num_epochs,
        seed=recipe.seed,
        fixed=training.fixed_partners,
    )
    steps = [(own_XD[own], keep_XD[kept]) for own, kept in pairs]
    for number, (own_BD, kept_BD) in enumerate(steps, start=1):
        moved = take_step(
            optimizer,
            partial(_backward, gate, own_BD, kept_BD, recipe.gate_weight),
            learning_rate=recipe.learning_rate_at(number, len(steps)),
            max_grad_norm=training.max_grad_norm,
        )
        if moved is None:
            raise UserError("adapter.learning_rate", f"training diverged at step {number}; use a smaller one")


def _backward(gate: Gate, own_BD: Tensor, kept_BD: Tensor, gate_weight: float) -> Tensor:
    is_forget_B = torch.arange(len(own_BD) + len(kept_BD)) < len(own_BD)
    loss = gate_weight * gate_bce(gate.logit(torch.cat([own_BD, kept_BD])), is_forget_B)
    loss.backward()
    return loss.detach()[None]


@torch.no_grad()
def openings(
    gates: CombinedGates, sets: GateSets, hidden: States, gate_thresholds: Sequence[float]
) -> list[dict[str, float]]:
    """Columns of `gates` at each threshold: shares of prompts that open a gate, and of how many. None of no prompts.

    `own` and `reworded`: that of their own request; `another`: one of another's; `another_first`: where among the open
    ones that is the most open, and its edit is what `top_1` applies; of all other sets: any.
    """
    requests = {name: column for column, name in enumerate(sets.requests)}
    own = _columns(sets.requests, requests)
    reworded = _columns(sets.reworded, requests)
    prompts = {
        "own": [prompt for part in sets.requests.values() for prompt in part],
        "reworded": [prompt for part in sets.reworded.values() for prompt in part],
        "kept": sets.keep,
        **sets.others,
    }
    gate_XK = {name: torch.sigmoid(gates.gates.logit(_rows(hidden, each))) for name, each in prompts.items() if each}
    table = []
    for threshold in gate_thresholds:
        gates.gate_threshold = threshold
        is_open_XK = {name: gates.weight(value_XK) > 0 for name, value_XK in gate_XK.items()}
        is_own_XK = torch.nn.functional.one_hot(own, len(requests)).bool()
        wrong_XK = is_open_XK["own"] & ~is_own_XK
        first_X1 = (gate_XK["own"] * is_open_XK["own"]).argmax(dim=1, keepdim=True)
        opened = {
            "own": is_open_XK["own"][is_own_XK],
            "another": wrong_XK.any(dim=1),
            "another_first": wrong_XK.gather(1, first_X1)[:, 0],
            **{name: value_XK.any(dim=1) for name, value_XK in is_open_XK.items() if name not in ("own", "reworded")},
        }
        if "reworded" in is_open_XK:
            opened["reworded"] = is_open_XK["reworded"].gather(1, reworded[:, None])[:, 0]
        shares = {f"{name}_openings": is_open_X.float().mean().item() for name, is_open_X in opened.items()}
        table.append({**shares, **{f"{name}_prompts": len(is_open_X) for name, is_open_X in opened.items()}})
    return table


def _columns(parts: Mapping[str, Sequence[Prompt]], requests: Mapping[str, int]) -> Tensor:
    """Of each prompt its request's gate: [X]."""
    return torch.tensor([requests[name] for name, part in parts.items() for _ in part], dtype=torch.long)


def _rows(hidden: States, prompts: Sequence[Prompt]) -> Tensor:
    return torch.stack([hidden[prompt] for prompt in prompts])
