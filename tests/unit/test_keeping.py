"""Questions of one's own that gates are to stay shut for: read, named by what they are, fitted to, never evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bench.benchmarks.authors import AuthorsConfig
from bench.benchmarks.items import Benchmark, Item
from bench.benchmarks.keeping import NO_SET, own_questions
from bench.benchmarks.tofu import TofuConfig
from bench.config import RunConfig, overlay, run_config
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from grun.adapters.eco import EcoConfig
from grun.data import Example
from grun.errors import UserError
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.retain_losses.ce import CeConfig
from grun.testing.small import FORGET, RETAIN, SmallModels
from grun.training.plan import plan_steps
from grun.training.recipe import Recipe, TrainingConfig
from grun.training.unlearn import unlearn

ASKED = Item(question="Who wrote it?", answer="Ada.", paraphrased_question="By whom was it written?")
BENCHMARK = Benchmark(config=AuthorsConfig(), forget_set=[ASKED], retain_set=[], evaluation={"forget": [ASKED]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("k.txt", "What is dew?\n\n  Why do cats purr?  \r\n"),
        ("k", "\ufeffWhat is dew?\nWhy do cats purr?"),
        ("k.json", '["What is dew?", "Why do cats purr?"]'),
        ("k.json", '{"question": "What is dew?", "answer": "Water."}\n{"question": "Why do cats purr?"}\n'),
    ],
    ids=["lines", "byte order mark", "texts", "rows"],
)
def test_what_a_file_may_be(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert own_questions(str(tmp_path / name), BENCHMARK, "adapter.keep_prompts") == [
        "What is dew?",
        "Why do cats purr?",
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("k.txt", b"\n \n", "is empty; write a question a line"),
        ("k.txt", b"\xff\xfe", r"cannot be read \(UnicodeDecodeError\)"),
        ("k.json", b'{"answer": "Water."}', r"line 1: question: is missing"),
        (
            "k.txt",
            b"What is dew?\nwho  WROTE it?",
            "1 of its questions are evaluated, such as .who WROTE it.. of",
        ),
        ("k.json", b'["By whom was it written?", "Who wrote it?"]', "2 of its questions are evaluated"),
    ],
    ids=["empty", "not text", "no question", "evaluated", "evaluated in other words"],
)
def test_what_it_may_not_be(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    """One line each. A question that is evaluated is refused however it is set, and so is its other wording."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^adapter\.keep_prompts: .*{problem}"):
        own_questions(str(tmp_path / name), BENCHMARK, "adapter.keep_prompts")


def _config(path: Path | None, **settings: Any) -> RunConfig:
    given = {"adapter": "eco", **({"adapter.keep_prompts": str(path)} if path else {}), **settings}
    return run_config(overlay({}, given))


def test_a_key_has_what_they_are_and_not_where(tmp_path: Path) -> None:
    """The same questions elsewhere are the same run; others, or none, are another one, module and all."""
    for folder, text in (("a", "What is dew?"), ("b", "What is dew?"), ("c", "What is fog?")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "k.txt").write_text(text)
    here, moved, other = (_config(tmp_path / folder / "k.txt") for folder in "abc")
    assert here.run_key == moved.run_key
    assert len({config.train_key for config in (here, other, _config(None))}) == 3
    assert "keep_prompts" not in json.dumps(_config(None).to_dict())
    (tmp_path / "a" / "k.txt").write_text("What is ice?")
    with pytest.raises(UserError, match=r"^adapter\.keep_prompts: .* holds something else than this run is named by"):
        Subject(config=here, execution=Execution(results=str(tmp_path / "r"))).benchmark  # noqa: B018


def test_an_evaluation_splits_file_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """The generated authors' own world facts, as somebody might take them for general questions."""
    benchmark = _config(None).benchmark.load()
    facts = [{"question": item.question} for item in benchmark.evaluation["world_facts"]]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    subject = Subject(config=_config(tmp_path / "facts.json"), execution=Execution(results=str(tmp_path / "r")))
    with pytest.raises(UserError, match=rf"^adapter\.keep_prompts: {len(facts)} of its questions are evaluated"):
        subject.prepare()
    (tmp_path / "own.txt").write_text("What is dew?\nWhy do cats purr?\n")
    subject = Subject(config=_config(tmp_path / "own.txt"), execution=Execution(results=str(tmp_path / "r")))
    assert subject.benchmark.keep_prompts == ["What is dew?", "Why do cats purr?"]


def test_what_is_in_no_set_is_in_none(tmp_path: Path) -> None:
    """Fifty questions, each once; nobody's gate may be fitted to them."""
    assert len(NO_SET) == len(set(NO_SET)) == 50
    (tmp_path / "k.txt").write_text(f"What is dew?\n{NO_SET[7]}\n")
    with pytest.raises(UserError, match=r"^adapter\.keep_prompts: 1 of its questions are evaluated, .* in no set; use"):
        own_questions(str(tmp_path / "k.txt"), BENCHMARK, "adapter.keep_prompts")


def test_only_a_gate_in_closed_form_is_fitted_to_prompts(tmp_path: Path) -> None:
    (tmp_path / "k.txt").write_text("What is dew?")
    line = r"^adapter\.keep_prompts: a linear gate is fitted to no prompts; use gate_function router, or"
    with pytest.raises(UserError, match=line):
        _config(tmp_path / "k.txt", adapter="grun")
    assert _config(tmp_path / "k.txt", adapter="grun", **{"adapter.gate_function": "router"}).adapter.is_gated


def test_a_gate_stays_shut_for_them(tmp_path: Path) -> None:
    """A question like those to be forgotten opens the gate; one that is kept does not any more, and theirs still do."""
    model, template = SmallModels.made_in(tmp_path).fresh()
    like_them = Example(prompt_ids=template.prompt_ids("What does Gil hold ?"), answer_ids=(0,))
    forget = [item.example(template) for item in FORGET]
    recipe = Recipe(
        forget_loss=GradAscentConfig(), retain_loss=CeConfig(), training=TrainingConfig(), learning_rate=0.0
    )
    plan = plan_steps(recipe, {"answer": [[e] for e in forget]}, [item.example(template) for item in RETAIN])
    opened = []
    for keep in ([], [like_them]):
        adapted = EcoConfig().attach(model, 0)
        unlearn(adapted, replace(plan, keep=keep), recipe, None)
        prompts = [example.prompt_ids for example in (like_them, *forget)]
        opened.append((torch.sigmoid(cast(Tensor, adapted.prompt_gates(prompts)))[:, 0] >= 0.5).tolist())
    assert opened == [[True] * 7, [False] + [True] * 6]


@pytest.mark.parametrize("file", ["shipped", str(Path(__file__).parents[2] / "docs/examples/general/questions.txt")])
def test_the_shipped_questions_are_none_that_tofu_evaluates(file: str, tofu_dir: str) -> None:
    benchmark = TofuConfig(data_dir=tofu_dir).load()
    questions = own_questions(file, benchmark, "adapter.keep_prompts")
    assert len(set(questions)) == len(questions) > 100
