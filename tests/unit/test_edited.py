"""Which layers are edited, and the intervention's own algebra."""

import pytest
import torch

from grun.errors import UserError
from grun.model.layers import layer_indices
from pyvene_custom.edits import GatedLoReFT, LoReFT


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


def _edit(hidden_size: int = 16, rank: int = 4) -> GatedLoReFT:
    torch.manual_seed(0)
    return GatedLoReFT(hidden_size=hidden_size, rank=rank, gate_function="linear")


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
    edit, h = _edit(), torch.randn(2, 1, 16)
    with torch.no_grad():
        for parameter in edit.gate.parameters():
            parameter.zero_()
    torch.testing.assert_close(edit(h)[0], h + 0.5 * edit.difference(h))
    assert torch.sigmoid(edit(h)[1]).flatten().tolist() == [0.5, 0.5]


def test_threshold_shuts_the_gate_exactly_and_only_at_inference() -> None:
    edit, h = _edit(), torch.randn(64, 1, 16)
    gates = torch.sigmoid(edit.gate_logit(h)).flatten()
    edit.gate_threshold = gates.median().item()
    shut = gates < edit.gate_threshold
    assert 0 < shut.sum() < 64
    edit.eval()
    edited = edit(h)[0]
    assert torch.equal(edited[shut], h[shut])
    assert not torch.equal(edited[~shut], h[~shut])
    edit.train()
    assert not torch.isclose(edit(h)[0], h).all(dim=-1).any(), "training never thresholds"
    edit.eval()
    edit.forced_open = False
    assert torch.equal(edit(h)[0], h)
    edit.forced_open = True
    everything, edit.forced_open, edit.gate_threshold = edit(h)[0], None, 0.0
    assert torch.equal(everything, edit(h)[0]), "an open gate is the soft gate"


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_rotation_stays_orthonormal_and_alive(weight_decay: float) -> None:
    """The reference's parametrisation turns R into zeros after one step of AdamW with weight decay."""
    torch.manual_seed(0)
    edit = LoReFT(hidden_size=32, rank=4)
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
    edit = LoReFT(hidden_size=12, rank=3)
    raw = edit.rotation.parametrizations.weight.original
    before = edit.rotation.weight.detach().clone()
    with torch.no_grad():
        raw.mul_(0.37)
    torch.testing.assert_close(edit.rotation.weight, before)


@pytest.mark.parametrize(("gate_function", "num_linear"), [("linear", 1), ("mlp_3", 3), ("mlp_5", 5)])
def test_gate_functions(gate_function: str, num_linear: int) -> None:
    edit = GatedLoReFT(hidden_size=8, rank=2, gate_function=gate_function)  # type: ignore[arg-type]
    assert sum(isinstance(layer, torch.nn.Linear) for layer in edit.gate) == num_linear
    assert edit.gate_logit(torch.randn(3, 8)).shape == (3, 1)
