"""Gates without edits: which prompts they are fitted to and asked about, what opens, and nothing computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import bench.gating.states as states
import bench.gating.study as study
from bench.benchmarks.tofu import TofuConfig
from bench.cli.main import main
from bench.config import RunConfig, run_config
from bench.files import write_yaml
from bench.gating.openings import fitted_gates, openings
from bench.gating.sets import GateSets, Prompt, gate_sets
from bench.gating.states import hidden_states
from bench.progress import quiet
from bench.results.storage import location
from bench.results.store import scan
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from grun.data import Example
from grun.errors import UserError
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.model.forward import PlainModel
from grun.retain_losses.ce import CeConfig
from grun.sequential import CombinedGates
from grun.testing.small import FORGET, RETAIN, SmallModels
from grun.training.recipe import Recipe, TrainingConfig
from pyvene_custom.edits import Gated
from pyvene_custom.gate_functions import GateFunction, new_gate

RECIPE = Recipe(
    forget_loss=GradAscentConfig(),
    retain_loss=CeConfig(),
    training=TrainingConfig(num_epochs=60),
    learning_rate=0.05,
    gate_weight=10.0,
)


def _sets(**parts: Any) -> GateSets:
    return GateSets(**{"reworded": {}, "others": {}, **parts})


def test_openings_of_two_gates() -> None:
    """Gate a is sigmoid(4x), gate b sigmoid(4y); sigmoid(0) = 0.5, sigmoid(4) = 0.982, sigmoid(8) = 0.9997.

    At 0.6, own: a of (1, 0) and of (1, 2), b of (0, 1) and not of (-1, -1): 3 of 4. Another's: b of (1, 2), 1 of 4, and
    as 8 > 4 it is the most open. Reworded: a of (2, 0), b not of (1, -1). Kept: (1, -1) opens a, (-1, -1) neither.
    At 0.99: a of (1, 2) is shut, b of it not; of the reworded (2, 0) opens a.
    """
    members: dict[str, Gated] = {}
    for name, weight in (("a", [4.0, 0.0]), ("b", [0.0, 4.0])):
        members[name] = Gated()
        members[name].gate = gate = new_gate("linear", 2)
        cast(Any, gate)[0].weight.data = torch.tensor([weight])
        cast(Any, gate)[0].bias.data.zero_()
    points = {(0,): (1.0, 0.0), (1,): (1.0, 2.0), (2,): (0.0, 1.0), (3,): (-1.0, -1.0), (4,): (2.0, 0.0)}
    hidden = {prompt: torch.tensor(point) for prompt, point in (points | {(5,): (1.0, -1.0)}).items()}
    sets = _sets(
        requests={"a": [(0,), (1,)], "b": [(2,), (3,)]},
        reworded={"a": [(4,)], "b": [(5,)]},
        keep=[(3,), (5,)],
        others={"no_set": [(3,)], "strangers": []},
    )
    low, high = openings(CombinedGates(members, "sum", 0.0), sets, hidden, [0.6, 0.99])
    counts = {"own": 4, "another": 4, "another_first": 4, "reworded": 2, "kept": 2, "no_set": 1}
    assert {name: value for name, value in low.items() if name.endswith("_prompts")} == {
        f"{name}_prompts": count for name, count in counts.items()
    }
    expected = (
        {"own": 0.75, "another": 0.25, "another_first": 0.25, "reworded": 0.5, "kept": 0.5, "no_set": 0.0},
        {"own": 0.0, "another": 0.25, "another_first": 0.25, "reworded": 0.5, "kept": 0.0, "no_set": 0.0},
    )
    for found, shares in zip((low, high), expected, strict=True):
        assert {name: found[f"{name}_openings"] for name in shares} == shares


def _around(centre: int, count: int, seed: int) -> torch.Tensor:
    place = torch.randn(16, generator=torch.Generator().manual_seed(centre))
    return place + 0.1 * torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["router", "mean_router", "linear", "mlp_3"])
def test_gates_are_fitted_to_requests_and_kept_prompts(kind: GateFunction) -> None:
    """Two subjects to forget and six to keep, far apart beside their noise: each question opens its own gate, and
    unseen ones of the same subjects, too; kept ones none. (Not so for what is like neither: nothing is asked of it.)"""
    points = {
        (subject, number): row for subject in range(8) for number, row in enumerate(_around(subject, 10, 100 + subject))
    }
    sets = _sets(
        requests={str(subject): [(subject, number) for number in range(5)] for subject in (0, 1)},
        reworded={str(subject): [(subject, number) for number in range(5, 10)] for subject in (0, 1)},
        keep=[(subject, number) for subject in range(2, 8) for number in range(5)],
        others={"held_back": [(subject, number) for subject in range(2, 8) for number in range(5, 10)]},
    )
    told: list[tuple[int, int]] = []
    gates = fitted_gates(kind, sets, points, RECIPE, lambda done, total: told.append((done, total)))
    (found,) = openings(gates, sets, points, [0.5])
    assert told == [(1, 2), (2, 2)]
    assert (found["own_openings"], found["reworded_openings"]) == (1.0, 1.0)
    assert (found["kept_openings"], found["held_back_openings"]) == (0.0, 0.0)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Prompts that went through a model."""
    seen: list[Prompt] = []
    run = states.read_from

    def counted(begun: Any, model: Any, prompts: Sequence[Prompt], *rest: Any, **others: Any) -> Any:
        seen.extend(prompts)
        return run(begun, model, prompts, *rest, **others)

    monkeypatch.setattr(states, "read_from", counted)
    return seen


def test_a_prompt_is_read_once(read: list[Prompt], tmp_path: Path) -> None:
    """And what is read is what gates read: the layer's output at the prompt's last token, to float rounding."""
    model, template = SmallModels.made_in(tmp_path / "model").fresh()
    execution = Execution(results=tmp_path / "results")
    parts = SimpleNamespace(model=model, device=model.device, execution=execution, progress=quiet)
    subject = cast(Subject, parts)
    prompts = [item.example(template).prompt_ids for item in (*FORGET, *RETAIN)]
    first = hidden_states(subject, [1, 2], prompts[:8])
    assert sorted(read) == sorted(prompts[:8])
    read.clear()
    again = hidden_states(subject, [1, 2], prompts)
    assert sorted(read) == sorted(prompts[8:])
    for layer in (1, 2):
        asked = [Example(prompt_ids=prompt, answer_ids=(0,)) for prompt in prompts]
        expected = PlainModel(model).answer_output(asked, layer).hidden_ND
        torch.testing.assert_close(torch.stack([again[layer][prompt] for prompt in prompts]), expected)
        assert all(torch.equal(again[layer][prompt], first[layer][prompt]) for prompt in prompts[:8])
    read.clear()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    hidden_states(subject, [2], prompts[:2])
    assert len(read) == 2, "of another model nothing is known"
    (*_, file) = location(tmp_path / "results" / "states").files()
    for each in location(tmp_path / "results" / "states").files():
        each.write(b"half a file")
    with pytest.raises(UserError, match=r"states/\w+\.safetensors: is damaged .*; delete it, and run this again"):
        hidden_states(subject, [2], prompts[:2])
    assert file.name.endswith(".safetensors")


class Template:
    """In place of a tokenizer's: a prompt's tokens are its characters."""

    def showing(self, examples: Any) -> Template:
        return self

    def example(self, question: str, answer: str) -> Example:
        return Example(prompt_ids=self.prompt_ids(question), answer_ids=(0,))

    def prompt_ids(self, question: str) -> Prompt:
        return tuple(map(ord, question))


def test_nothing_is_asked_that_was_fitted_to(made_up_tofu_dir: Path) -> None:
    """Of 200 authors with 20 questions each the last 100 are requests, the first 60 are kept, 40 are in no set; a
    fifth of the 1,200 kept questions is held back."""
    config = TofuConfig(data_dir=str(made_up_tofu_dir), num_items=300)
    subject = cast(
        Subject,
        SimpleNamespace(config=SimpleNamespace(benchmark=config), template=Template(), keep=[]),
    )
    sets = gate_sets(subject, 100)
    assert {name: len(prompts) for name, prompts in sets.requests.items()} == {f"{k:03d}": 20 for k in range(1, 101)}
    assert len(sets.keep) == 960
    assert {name: len(prompts) for name, prompts in sets.others.items()} == {
        "held_back": 240,
        "kept_reworded": 0,
        "real_authors": 8,
        "world_facts": 8,
        "strangers": 800,
        "no_set": 50,
    }
    fitted = {*sets.keep, *(prompt for prompts in sets.requests.values() for prompt in prompts)}
    assert not any(fitted & set(prompts) for prompts in sets.others.values())
    assert set(gate_sets(subject, 2).keep) == set(sets.keep), "the same for fewer requests"
    assert list(gate_sets(subject, 2).requests.values()) == [sets.requests["099"], sets.requests["100"]]
    with pytest.raises(UserError, match=r"^num_requests: 101, but TOFU leaves 100 beside those to be kept"):
        gate_sets(subject, 101)


def test_other_words_that_are_a_fitted_question_are_not_asked(tmp_path: Path) -> None:
    """Of a's two questions one is put in the words of a kept question, of b's one in its own."""
    rows: Mapping[str, Sequence[Mapping[str, str]]] = {
        "forget": [
            {"question": "A one", "paraphrased_question": "One A", "request": "a"},
            {"question": "A two", "paraphrased_question": "Keep 0", "request": "a"},
            {"question": "B one", "paraphrased_question": "B one", "request": "b"},
        ],
        "retain": [{"question": f"Keep {number}"} for number in range(10)],
    }
    for part, own in rows.items():
        (tmp_path / f"{part}.json").write_text(json.dumps([{**row, "answer": "Yes."} for row in own]))
    config = run_config({"benchmark": {"name": "questions", "data_dir": str(tmp_path)}})
    benchmark = config.benchmark.load()
    parts: dict[str, Any] = {"config": config, "benchmark": benchmark, "template": Template()}
    kept = Example(prompt_ids=Template().prompt_ids("Keep 0"), answer_ids=(0,))
    subject = cast(Subject, SimpleNamespace(**parts, keep=[kept]))
    sets = gate_sets(subject, 2)
    assert kept.prompt_ids in sets.keep
    assert kept.prompt_ids not in sets.others["held_back"]
    assert sets.reworded == {"a": [Template().prompt_ids("One A")], "b": []}
    with pytest.raises(UserError, match=r"^num_requests: 3, but questions forget has 2$"):
        gate_sets(subject, 3)


Printed = pytest.CaptureFixture[str]


@pytest.fixture
def command(small_config: RunConfig, target_folder: str, tmp_path: Path) -> Callable[..., None]:
    """`grun-bench gates` of the small setting, whose target model is there."""
    setting = tmp_path / "small.yaml"
    write_yaml(setting, {part: small_config.to_dict()[part] for part in ("benchmark", "model")})
    return lambda *words: main(["gates", str(setting), "--results", str(tmp_path / "results"), *words])


def test_the_command_goes_on_where_it_was(
    command: Callable[..., None],
    read: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Printed,
) -> None:
    """One request of ten questions, 40 kept of which 8 are held back, 20 strangers; a router and a linear gate, each at
    two thresholds: four rows. Again: nothing is opened. At one more threshold: nothing is read."""
    command("--num-requests", "1", "--gate-thresholds", "0.3", "0.5")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = scan(location(tmp_path / "results"), "gates", "").sort("gate_function", "gate_threshold").to_dicts()
    assert [(row["gate_function"], row["gate_threshold"]) for row in rows] == [
        (kind, threshold) for kind in ("linear", "router") for threshold in (0.3, 0.5)
    ]
    assert len(printed) == 1 + 4 + 1
    for row in rows:
        counts = {name: row[f"{name}_prompts"] for name in ("own", "reworded", "kept", "held_back", "strangers")}
        assert counts == {"own": 10, "reworded": 10, "kept": 32, "held_back": 8, "strangers": 20}
        assert (row["gate_layer"], row["num_layers"], row["taught"], row["another_openings"]) == (3, 4, 50, 0.0)
        assert 0 < row["fit_seconds"] < 60
    assert rows[-1]["own_openings"] == 1.0
    assert read
    read.clear()
    with monkeypatch.context() as nothing:
        nothing.setattr(study, "Subject", None)
        command("--num-requests", "1", "--gate-thresholds", "0.3", "0.5")
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == printed
    command("--num-requests", "1", "--gate-thresholds", "0.5", "0.9")
    assert not read
    assert len(scan(location(tmp_path / "results"), "gates", "")) == 6


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--num-requests", "2"), "num_requests: 2, but authors forget20 has 1"),
        (("--adapter", "lora"), "adapter: lora has no gates; use one that has, such as grun"),
        (("--layers", "1.5"), "argument --layers: '1.5' is not a number from 0 to 1"),
        (("--layers", "0.0"), "argument --layers: there is no layer 0.0; write 0 for the first one"),
        (("--layers", "7", "--num-requests", "1"), "--layers: layer 7 is beyond the model's 4; use 0 to 3"),
        (("--gate-thresholds", "2"), "'2' is not a number from 0 to 1"),
    ],
)
def test_what_can_be_mended_is_one_line(
    words: tuple[str, ...], line: str, command: Callable[..., None], capsys: Printed
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(*words)
    assert ended.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--num-requests", "1", "2"), "num_requests: 2, but authors forget20 has 1"),
        (("--num-requests", "1", "--layers", "1.0", "7"), "--layers: layer 7 is beyond the model's 4"),
    ],
)
def test_what_there_is_not_is_said_before_a_model_is_taught(
    words: tuple[str, ...],
    line: str,
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Printed,
) -> None:
    """What is wrong comes second: nothing is prepared for the first."""
    made: list[str] = []
    for part in ("model", "template"):
        monkeypatch.setattr(study.Subject, part, property(lambda subject, part=part: made.append(part)))
    with pytest.raises(SystemExit):
        command(*words)
    assert line in capsys.readouterr().err
    assert made == []


def test_a_router_that_reads_the_mean_is_set_beside_the_one_that_does_not(
    command: Callable[..., None], read: list[Prompt], tmp_path: Path
) -> None:
    """Each on what it reads: every prompt goes through the model once for either."""
    command("--num-requests", "1", "--gate-thresholds", "0.5", "--adapter.gate_function", "mean_router")
    rows = scan(location(tmp_path / "results"), "gates", "").sort("gate_function").to_dicts()
    assert [row["gate_function"] for row in rows] == ["mean_router", "router"]
    assert [row["own_openings"] for row in rows] == [1.0, 1.0]
    assert sorted(read[: len(read) // 2]) == sorted(read[len(read) // 2 :])
    assert len(list((tmp_path / "results" / "states").iterdir())) == 2
