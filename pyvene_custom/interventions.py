"""An edit as a pyvene intervention; the gate travels in its InterventionOutput."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyvene_custom.quiet import pyvene


class EditIntervention(pyvene.SourcelessIntervention, pyvene.TrainableIntervention):
    """Applies an edit (of pyvene_custom.edits, or several combined) to what pyvene selects."""

    def __init__(self, edit: nn.Module) -> None:
        super().__init__()
        self.edit = edit

    def forward(self, base: Tensor, source: None = None, subspaces: None = None) -> Any:
        """base: hidden states [B, D], the one position's; `latent` holds the gate logits [B, 1], None without a gate.

        `source` and `subspaces` are pyvene's, unused.
        """
        edited, gate_logit = self.edit(base)
        return pyvene.InterventionOutput(output=edited, latent=gate_logit)
