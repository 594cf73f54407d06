"""What the guide shows of code is code that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import run_config
from grun.losses import AnswerScores

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def test_its_loss_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as the guide says, and by hand: of tokens at 1 and 4 nats, capped at 3, −(1 + 3) / 2."""
    (code,) = re.findall(r"```python\n# my_losses.py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = run_config({"forget_loss": {"name": "my_losses:CappedConfig", "cap": 3.0}})
    probability_NV = torch.tensor([-1.0, -4.0]).exp()[:, None]
    logits_NV = torch.cat([probability_NV, 1 - probability_NV], dim=1).log()
    forget: Any = {"answer": AnswerScores.of(logits_NV, [(0, 0)])}
    loss: Any = config.forget_loss
    assert loss(forget).item() == pytest.approx(-2.0)


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(GUIDE.read_text().splitlines()) <= 250
