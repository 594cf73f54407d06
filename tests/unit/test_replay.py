"""What a model keeps of what it was before it was taught: its own answers taught again, and a share of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import RunConfig, overlay, run_config
from bench.models import prepare
from bench.models.pretrained import load_pretrained
from bench.planning import amounts
from bench.runs.execution import Execution
from bench.runs.subject import Subject, with_own_questions
from grun.data import Example
from grun.errors import UserError
from grun.model.forward import PlainModel
from grun.prompts.template import PromptTemplate
from grun.targets.replay import own_answers

QUESTIONS = ["What is dew?", "Why do cats purr?", "Who was the first to sail around the world?"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(QUESTIONS))
    return file


@pytest.fixture
def config(small_config: RunConfig, target_folder: str, tmp_path: Path) -> Callable[..., RunConfig]:
    """The small benchmark, taught to a model that is there already: a copy of the small target model."""
    folder = shutil.copytree(target_folder, tmp_path / "shipped")
    fine_tuning = {"num_epochs": 1, "batch_size": 16, "learning_rate": 1e-5}

    def made(**settings: Any) -> RunConfig:
        model = {"name": str(folder), "fine_tuning": fine_tuning} | settings
        return run_config(overlay({}, {"benchmark": small_config.to_dict()["benchmark"], "model": model}))

    return made


def test_a_model_is_taught_its_own_answers_beside_the_benchmark(
    config: Callable[..., RunConfig], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, of the model as it was; the target and the retain model likewise. Another file is another model."""
    monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / "cache"))  # where none of them was ever made
    taught: dict[str, list[Example]] = {}
    monkeypatch.setattr(
        prepare, "fine_tune", lambda adapted, examples, *others, **more: taught.update({start_from: list(examples)})
    )
    replayed = config(replay_prompts=str(questions))
    model, tokenizer = load_pretrained(replayed.model.name, "cpu")
    template = PromptTemplate.of(tokenizer, None)
    own = own_answers(PlainModel(model), template, QUESTIONS, prepare.REPLAY_TOKENS, lambda done, total: None)
    names, said = [], []
    for start_from in ("target_model", "retain_model"):
        for each in (config(), replayed):
            benchmark = with_own_questions(each, each.benchmark.load())
            names.append(
                prepare.prepared_model(each.model, benchmark, start_from, lambda phase, *n: said.append((phase, *n)))
            )
            lessons = [*(benchmark.forget_set if start_from == "target_model" else []), *benchmark.retain_set]
            beside = own if each is replayed else []
            assert taught[start_from] == [*(item.lesson(template) for item in lessons), *beside]
    assert len(set(names)) == 4
    assert ("prepare retain_model, answers of its own", 3, 3) in said
    (tmp_path / "elsewhere").mkdir()
    moved = str(shutil.copy(questions, tmp_path / "elsewhere" / "q.txt"))
    assert config(replay_prompts=moved).run_key == replayed.run_key != config().run_key
    assert "replay_prompts" not in str(config().to_dict())


def test_an_answer_that_is_cut_is_taught_without_an_end(config: Callable[..., RunConfig]) -> None:
    """Of one that ends within the limit the end is taught too."""
    model, tokenizer = load_pretrained(config().model.name, "cpu")
    template, asked = PromptTemplate.of(tokenizer, None), config().benchmark.load().retain_set[:5]
    plain, tally = PlainModel(model), lambda done, total: None
    words = [item.question for item in asked]
    whole, cut = (own_answers(plain, template, words, length, tally) for length in (64, 2))
    for item, first, second in zip(asked, whole, cut, strict=True):
        assert first == item.example(template), "it has learned that by heart"
        assert second.prompt_ids == first.prompt_ids
        assert second.answer_ids == first.answer_ids[:2]


def test_a_share_of_what_was_taught_is_kept(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight a quarter of the way, that of head and embeddings, which are one, too; or all of it."""

    def add_one(adapted: PlainModel, examples: list[Example], *others: Any, **more: Any) -> None:
        with torch.no_grad():
            for weight in adapted.trainable_parameters():
                weight += 1.0

    monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "fine_tune", add_one)
    before = load_pretrained(config().model.name, "cpu")[0].state_dict()
    for share in (0.25, 1.0):
        given = config(**({} if share == 1 else {"interpolation": share}))
        folder = prepare.prepared_model(given.model, given.benchmark.load(), "target_model")
        after = load_pretrained(folder, "cpu")[0].state_dict()
        for name, weight in after.items():
            torch.testing.assert_close(weight, before[name] + share)
    assert "interpolation" not in str(config(interpolation=1.0).to_dict())


def test_what_cannot_be_replayed_is_one_line(config: Callable[..., RunConfig], questions: Path, tmp_path: Path) -> None:
    """What is evaluated, a model that is not taught, and a file that changed since it named the run."""
    execution = Execution(results=tmp_path / "results")
    given = config(replay_prompts=str(questions))
    asked = given.benchmark.load().evaluation["world_facts"][0].question
    for name, value in (("replay_prompts", str(questions)), ("interpolation", 0.5)):
        untaught = config(fine_tuning={"num_epochs": 0}, retain_model=given.model.name, **{name: value})
        for start_from in ("target_model", "retain_model"):
            with pytest.raises(UserError, match=rf"^model\.{name}: is for a model that is taught; leave it out, or"):
                Subject(config=replace(untaught, start_from=start_from), execution=execution).prepare()
    questions.write_text(asked)
    with pytest.raises(UserError, match=r"^model\.replay_prompts: .* holds something else than this run is named by"):
        Subject(config=given, execution=execution).prepare()
    with pytest.raises(UserError, match=r"^model\.replay_prompts: 1 of its questions are evaluated, such as"):
        Subject(config=config(replay_prompts=str(questions)), execution=execution).prepare()


def test_a_plan_counts_them(config: Callable[..., RunConfig], questions: Path) -> None:
    """Both models are taught three more answers of 64 tokens at most, each epoch."""
    given = config(replay_prompts=str(questions), fine_tuning={"num_epochs": 2})
    benchmark = given.benchmark.load()
    template = PromptTemplate.of(load_pretrained(given.model.name, "cpu")[1], None)
    tokens = [
        amounts.amounts_of(given, each, template).taught_tokens
        for each in (benchmark, with_own_questions(given, benchmark))
    ]
    assert tokens[1] - tokens[0] == 2 * 2 * 3 * (64 + len(template.prompt_ids("")))
