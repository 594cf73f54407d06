"""A loss and an adapter from outside this repository: checked, run, written and loaded like our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.errors import UserError
from grun.unlearned import load

FILES = {
    "outsiders/__init__.py": "",
    "outsiders/halving.py": '''
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from grun.declared import declares
from grun.forget_losses.forget_loss import ForgetLoss, Targets
from grun.losses import ForgetScores, Need, Unit
from grun.targets.answer import own_answers


@declares(ForgetLoss)
@dataclass(frozen=True, kw_only=True)
class HalvingConfig:
    """Gradient ascent, half of it for every `half_life` nats that a token has lost."""

    paper_retain_weight: ClassVar[float] = 3.0
    targets: ClassVar[Targets] = {"answer": own_answers}
    reference: ClassVar[Need | None] = None
    mean_over: ClassVar[Unit] = "tokens"
    positions: ClassVar[str] = "answer"
    hidden_layer: ClassVar[None] = None
    name: Literal["halving"] = "halving"
    half_life: Annotated[float, Gt(0)] = 2.0

    def __call__(self, forget: ForgetScores):
        return -(0.5 ** (forget["answer"].nll_N.detach() / self.half_life) * forget["answer"].nll_N).mean()


@dataclass(frozen=True, kw_only=True)
class SilentConfig:
    name: str = "silent"
''',
    "outsiders/shift.py": '''
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from safetensors.torch import load_file, save_file

from grun.adapters.adapter import Adapter
from grun.declared import declares
from grun.model.forward import PlainModel
from grun.lm.patching import decoder_layers


@declares(Adapter)
@dataclass(frozen=True, kw_only=True)
class ShiftConfig:
    """One vector is added to what the last layer gives."""

    trains: ClassVar[Literal[True]] = True
    has_loss: ClassVar[Literal[True]] = True
    trains_in_place: ClassVar[Literal[False]] = False
    is_small: ClassVar[Literal[True]] = True
    is_gated: ClassVar[Literal[False]] = False
    is_stackable: ClassVar[Literal[False]] = False
    paper_retain_weights: ClassVar[Mapping[str, float]] = {}
    edits: ClassVar[None] = None
    name: Literal["shift"] = "shift"
    learning_rate: Annotated[float, Gt(0)] = 1e-2

    def attach(self, model, seed):
        model.requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        shift = 1e-3 * torch.randn(model.config.hidden_size, generator=draw)
        model.register_parameter("shift", torch.nn.Parameter(shift))
        decoder_layers(model)[-1].register_forward_hook(lambda layer, given, output: output + model.shift)
        return PlainModel(model)

    def save(self, adapted, folder):
        save_file({"shift": adapted.model.shift.detach()}, folder / "shift.safetensors")

    def load(self, model, folder):
        adapted = self.attach(model, 0)
        adapted.model.shift.data.copy_(load_file(folder / "shift.safetensors")["shift"])
        adapted.train(False)
        return adapted
''',
    "test_outsiders.py": """
import pytest

from grun.testing.adapters import AdapterContract
from grun.testing.forget_losses import ForgetLossContract
from outsiders.halving import HalvingConfig
from outsiders.shift import ShiftConfig


class TestHalving(ForgetLossContract):
    @pytest.fixture
    def loss(self):
        return HalvingConfig()


class TestShift(AdapterContract):
    @pytest.fixture
    def config(self):
        return ShiftConfig()
""",
    "outsiders-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outsiders\nVersion: 1.0\n",
    "outsiders-1.0.dist-info/entry_points.txt": (
        "[grun.forget_losses]\nhalving = outsiders.halving:HalvingConfig\n"
        "silent = outsiders.halving:SilentConfig\n[grun.adapters]\nshift = outsiders.shift:ShiftConfig\n"
    ),
}
BY_PATH = {"forget_loss": "outsiders.halving:HalvingConfig", "adapter": "outsiders.shift:ShiftConfig"}
BY_ENTRY_POINT = {"forget_loss": "halving", "adapter": "shift"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path with a package that is installed there."""
    folder = tmp_path / "elsewhere"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "outsiders"]:
        del sys.modules[name]


def test_the_contracts_can_be_run_on_them(package: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_outsiders.py"]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout


@pytest.mark.parametrize("named", [BY_PATH, BY_ENTRY_POINT], ids=["by path", "by entry point"])
def test_they_run_like_our_own(
    named: dict[str, Any], package: Path, small_config: RunConfig, small_results: Path
) -> None:
    """A key of their own, a row with their names, a config that reads back, a module that loads."""
    changes = {**named, "forget_loss.half_life": 1.0, "training.retain_weight": None}
    changes |= {"training.num_epochs": 2, "evaluation.max_new_tokens": 8}
    config = run_config(overlay(small_config.to_dict(), changes))
    assert config.training.retain_weight == 3.0
    (row,) = run(config, Execution(results=small_results))
    assert (row["method"], row["forget_loss"], row["adapter"]) == ("shift+halving", "halving", "shift")
    assert row["trainable_parameters"] == config.model.hidden_size
    written = json.loads(row["config_json"])
    assert written["forget_loss"] == {"name": "outsiders.halving:HalvingConfig", "half_life": 1.0}
    assert run_config(written) == config
    assert run_config(written).run_key == config.run_key == row["run_key"]
    load(small_results / "modules" / config.train_key).generate("Where was it?", 4)


def test_a_key_does_not_depend_on_how_it_was_found(package: Path) -> None:
    keys = {run_config(overlay({}, named)).run_key for named in (BY_PATH, BY_ENTRY_POINT)}
    assert len(keys) == 1
    assert keys != {run_config(overlay({}, {**BY_PATH, "forget_loss.half_life": 4.0})).run_key}


def test_keys_lists_their_settings(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "--forget-loss", BY_PATH["forget_loss"]])
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    settings = [words[:2] for words in listed if words and words[0].startswith("--forget_loss.")]
    assert settings == [["--forget_loss.half_life", "2.0"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"forget_loss": "nowhere.at_all:X"},
            "forget_loss: nowhere.at_all:X cannot be used (No module named 'nowhere')",
        ),
        ({"forget_loss": "outsiders.halving:Missing"}, "forget_loss: outsiders.halving:Missing cannot be used"),
        (
            {"forget_loss": "silent"},
            "forget_loss: outsiders.halving:SilentConfig cannot be used (SilentConfig does not",
        ),
        ({**BY_PATH, "forget_loss.half_live": 1.0}, "forget_loss.half_live: unknown key; did you mean half_life?"),
        ({**BY_PATH, "forget_loss.half_life": 0}, "forget_loss.half_life: must be greater than 0 (got 0)"),
        ({"forget_loss": "halve"}, "forget_loss: must be one of 'altpo', "),
    ],
)
def test_errors_name_the_field_and_the_fix(changes: dict[str, Any], message: str, package: Path) -> None:
    with pytest.raises(UserError) as error:
        run_config(overlay({}, changes))
    assert str(error.value).startswith(message)
