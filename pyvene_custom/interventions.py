"""An edit as a pyvene intervention on a layer's whole output."""

from __future__ import annotations

from torch import Tensor, nn

from pyvene_custom.editing import Editing
from pyvene_custom.quiet import pyvene


class EditIntervention(pyvene.SourcelessIntervention, pyvene.TrainableIntervention):
    """Leaves to the pass under way what becomes of its layer's output."""

    def __init__(self, layer: int, edit: nn.Module) -> None:
        super().__init__(keep_last_dim=True)
        self.layer = layer
        self.edit = edit  # its weights are pyvene's to train and to list
        self.editing: Editing | None = None

    def forward(self, base: Tensor, source: None = None, subspaces: None = None) -> Tensor:
        """base: hidden states [B, L, D]. `source` and `subspaces` are pyvene's, unused."""
        assert self.editing is not None, "GatedModel says which pass it is"
        return self.editing(self.layer, base)
