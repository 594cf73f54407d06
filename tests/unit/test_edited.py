"""Which layers are edited, and the intervention's own algebra."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grun.adapters.grun import GrunConfig
from grun.adapters.reft import ReftConfig
from grun.errors import UserError
from grun.lm.layers import layer_indices
from pyvene_custom.edits import LoReFT
from pyvene_custom.gate_functions import GateFunction, new_gate


@pytest.mark.parametrize(
    ("layers", "num_layers", "indices"),
    [
        ((21 / 32, 26 / 32, 1.0), 32, (20, 25, 31)),
        ((0.6, 0.8, 1.0), 30, (17, 23, 29)),
        ((2, 5, 3), 6, (2, 3, 5)),
        ((0.01,), 6, (0,)),
        ((0.9, 1.0), 3, (2,)),
    ],
)
def test_layer_indices(layers: tuple[float, ...], num_layers: int, indices: tuple[int, ...]) -> None:
    """Depth d is layer round(d · layers) − 1; the paper's 20, 25, 31 of 32 are 21/32, 26/32 and 1."""
    assert layer_indices(layers, num_layers) == indices


def test_a_layer_beyond_the_model_is_named() -> None:
    with pytest.raises(UserError, match=r"adapter.layers: layer 40 is beyond the model's 32; use 0 to 31"):
        layer_indices((3, 40), 32)


@pytest.mark.parametrize("adapter", [GrunConfig, ReftConfig])
def test_a_rank_beyond_the_model_is_named(adapter: type[GrunConfig] | type[ReftConfig]) -> None:
    """Nine orthonormal rows have no room in eight dimensions; eight have."""
    llama = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(llama)
    with pytest.raises(UserError, match=r"^adapter\.rank: 9 is more than the hidden size; use at most 8$"):
        adapter(rank=9, layers=(0,)).attach(model, seed=0)
    assert adapter(rank=8, layers=(0,)).attach(model, seed=0).layers == (0,)


def _edit(hidden_size: int = 16, rank: int = 4) -> LoReFT:
    torch.manual_seed(0)
    return LoReFT(hidden_size=hidden_size, rank=rank, gate_function="linear")


def _edited(edit: LoReFT, h_BD: torch.Tensor) -> torch.Tensor:
    """Each prompt's hidden state, edited as far as its own gate is open."""
    return edit.edited(h_BD[:, None], edit.read(h_BD)[0])[:, 0]


def _gates(edit: LoReFT, h_BD: torch.Tensor) -> torch.Tensor:
    logit_B1 = edit.read(h_BD)[1]
    assert logit_B1 is not None
    return torch.sigmoid(logit_B1)[:, 0]


def test_edit_replaces_the_subspace() -> None:
    """Within the span of R's rows the fully edited state is W h + b; outside it nothing moves."""
    edit, h = _edit(), torch.randn(5, 16)
    rotation = edit.rotation.weight
    edited = h + edit.difference(h)
    torch.testing.assert_close(edited @ rotation.T, edit.learned_source(h), atol=1e-5, rtol=1e-5)
    outside = torch.eye(16) - rotation.T @ rotation
    torch.testing.assert_close(edited @ outside, h @ outside, atol=1e-5, rtol=1e-5)


def test_half_open_gate_edits_half() -> None:
    """A gate with zero weights is 1/2 everywhere: h' = h + edit / 2."""
    edit, h = _edit(), torch.randn(2, 16)
    with torch.no_grad():
        for parameter in edit.gate.parameters():
            parameter.zero_()
    torch.testing.assert_close(_edited(edit, h), h + 0.5 * edit.difference(h))
    assert _gates(edit, h).tolist() == [0.5, 0.5]


def test_threshold_shuts_the_gate_exactly_and_only_at_inference() -> None:
    edit, h = _edit(), torch.randn(64, 16)
    gates = _gates(edit, h)
    edit.gate_threshold = gates.median().item()
    shut = gates < edit.gate_threshold
    assert 0 < shut.sum() < 64
    edit.eval()
    edited = _edited(edit, h)
    assert torch.equal(edited[shut], h[shut])
    assert not torch.equal(edited[~shut], h[~shut])
    edit.train()
    assert not torch.isclose(_edited(edit, h), h).all(dim=-1).any(), "training never thresholds"
    edit.eval()
    edit.forced_open = False
    assert torch.equal(_edited(edit, h), h)
    edit.forced_open = True
    everything, edit.forced_open, edit.gate_threshold = _edited(edit, h), None, 0.0
    assert torch.equal(everything, _edited(edit, h)), "an open gate is the soft gate"


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_rotation_stays_orthonormal_and_alive(weight_decay: float) -> None:
    """The reference's parametrisation turns R into zeros after one step of AdamW with weight decay."""
    torch.manual_seed(0)
    edit = LoReFT(hidden_size=32, rank=4, gate_function=None)
    optimizer = torch.optim.AdamW(edit.parameters(), lr=1e-2, weight_decay=weight_decay)
    before = edit.rotation.weight.detach().clone()
    h, wanted = torch.randn(8, 32), torch.randn(8, 32)
    for _ in range(20):
        loss = (h + edit.difference(h) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in edit.parameters())
        optimizer.step()
    rotation = edit.rotation.weight.detach()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(4), atol=1e-5, rtol=0)
    assert (rotation - before).abs().max() > 1e-2, "R has learned"


def test_rotation_is_the_same_for_a_scaled_parameter() -> None:
    """Weight decay only scales the parameter, and the map does not see scale."""
    edit = LoReFT(hidden_size=12, rank=3, gate_function=None)
    raw = edit.rotation.parametrizations.weight.original
    before = edit.rotation.weight.detach().clone()
    with torch.no_grad():
        raw.mul_(0.37)
    torch.testing.assert_close(edit.rotation.weight, before)


@pytest.mark.parametrize(("gate_function", "num_linear"), [("linear", 1), ("mlp_3", 3), ("mlp_5", 5)])
def test_gate_functions(gate_function: GateFunction, num_linear: int) -> None:
    gate = new_gate(gate_function, 8)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in gate.modules()) == num_linear
    assert gate.logit(torch.randn(3, 8)).shape == (3, 1)
