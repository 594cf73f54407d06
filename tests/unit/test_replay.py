"""What a model keeps of what it was before it was taught: what it says to questions of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.benchmarks.keeping import questions_file
from bench.config import RunConfig, overlay, run_config
from bench.models import prepare
from bench.models.pretrained import load_pretrained
from bench.planning import amounts
from bench.runs.execution import Execution
from bench.runs.subject import Subject, with_own_questions
from grun.data import Example
from grun.errors import UserError
from grun.losses import kl_divergence
from grun.model.forward import PlainModel
from grun.prompts.template import PromptTemplate
from grun.targets.replay import own_answers
from grun.training.plan import StepExamples, parts_of
from grun.training.teach import FineTuningConfig, Lessons, fine_tune

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


def test_a_model_keeps_its_own_answers_beside_the_benchmark(
    config: Callable[..., RunConfig], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, of the model as it was; the target and the retain model likewise. Another file is another model."""
    monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / "cache"))  # where none of them was ever made
    taught: dict[str, Lessons] = {}
    monkeypatch.setattr(
        prepare, "fine_tune", lambda adapted, lessons, *others, **more: taught.update({start_from: lessons})
    )
    replayed = config(replay_prompts=str(questions), replay_weight=0.5)
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
            items = [*(benchmark.forget_set if start_from == "target_model" else []), *benchmark.retain_set]
            assert taught[start_from].taught == [item.lesson(template) for item in items]
            assert taught[start_from].kept == (own if each is replayed else ())
            assert taught[start_from].kept_weight == (0.5 if each is replayed else 1.0)
    assert len(set(names)) == 4
    assert ("prepare retain_model, answers of its own", 3, 3) in said
    assert ("prepare retain_model, what else it could have said", 3, 3) in said
    (tmp_path / "elsewhere").mkdir()
    moved = str(shutil.copy(questions, tmp_path / "elsewhere" / "q.txt"))
    assert config(replay_prompts=moved, replay_weight=0.5).run_key == replayed.run_key != config().run_key
    assert "replay_prompts" not in str(config().to_dict())


def test_an_answer_that_is_cut_has_no_end(config: Callable[..., RunConfig]) -> None:
    """Of one that ends within the limit the end is kept too."""
    model, tokenizer = load_pretrained(config().model.name, "cpu")
    template, asked = PromptTemplate.of(tokenizer, None), config().benchmark.load().retain_set[:5]
    plain, tally = PlainModel(model), lambda done, total: None
    words = [item.question for item in asked]
    whole, cut = (own_answers(plain, template, words, length, tally) for length in (64, 2))
    for item, first, second in zip(asked, whole, cut, strict=True):
        assert first == item.example(template), "it has learned that by heart"
        assert second.prompt_ids == first.prompt_ids
        assert second.answer_ids == first.answer_ids[:2]


def test_a_step_reads_as_many_answers_as_it_teaches(fresh_target: Callable[[], Any]) -> None:
    """Each lesson once an epoch, in the order that it has alone; answers in turn, all before one comes again."""
    _, template = fresh_target()
    taught, kept = ([template.example(f"{word} {number}?", "Yes.") for number in range(5)] for word in ("Who", "Why"))
    recipe = FineTuningConfig(num_epochs=2, batch_size=2)
    alone, beside = (list(lessons.steps(recipe)) for lessons in (Lessons(taught=taught), _lessons(taught, kept)))
    assert [step.retain for step in alone] == [step.retain for step in beside]
    assert [len(step.forget["kept"]) for step in beside] == [2, 2, 1, 2, 2, 1]
    assert not any(step.forget for step in alone)
    read = [example for step in beside for example in step.forget["kept"]]
    assert set(read[:5]) == set(read[5:]) == set(kept)


def _lessons(taught: list[Example], kept: list[Example], model: Any = None) -> Lessons:
    if model is None:
        return Lessons(taught=taught, kept=kept)
    return Lessons.beside(model, taught, kept, lambda done, total: None)


def test_the_loss_is_by_hand_also_when_the_head_has_moved(fresh_target: Callable[[], Any]) -> None:
    """nll of what is taught and KL(before ‖ now) of what is kept, each a mean over tokens, in one part or three."""
    model, template = fresh_target()
    before, _ = fresh_target()
    taught = [template.example(f"Who is number {number}?", "Nobody knows " * number + "him.") for number in range(1, 4)]
    kept = [template.example(f"Why {number}?", "Because " * (4 - number) + "so.") for number in range(1, 4)]
    lessons = _lessons(taught, kept, model)
    step = StepExamples(forget={"kept": kept}, retain=taught)
    plain, untouched = PlainModel(model), PlainModel(before)
    (whole,) = parts_of(step, "tokens", 1)
    nll = plain.answer_output(taught).scores.nll_N.mean()
    torch.testing.assert_close(lessons.loss(plain, whole), nll, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    kl = kl_divergence(untouched.answer_output(kept).logits_NV, plain.answer_output(kept).logits_NV)
    assert kl > 1e-3
    expected = plain.answer_output(taught).scores.nll_N.mean() + kl
    torch.testing.assert_close(lessons.loss(plain, whole), expected, rtol=1e-4, atol=1e-5)
    in_parts = sum(lessons.loss(plain, part) for part in parts_of(step, "tokens", 3))
    torch.testing.assert_close(in_parts, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(replace(lessons, kept_weight=3.0).loss(plain, whole), expected + 2 * kl)


def test_a_model_that_keeps_its_answers_goes_less_far_from_them(
    fresh_target: Callable[[], Any], config: Callable[..., RunConfig]
) -> None:
    """Of answers that it knows, while others are taught: less than half the divergence that there is without."""
    items = config().benchmark.load().retain_set[:8]
    divergence = []
    for beside in (False, True):
        model, template = fresh_target()
        before, _ = fresh_target()
        taught = [template.example(f"Who is number {number}?", f"A man from {number} Low Lane.") for number in range(8)]
        kept = [item.example(template) for item in items]
        lessons = _lessons(taught, kept, model) if beside else Lessons(taught=taught)
        recipe = FineTuningConfig(num_epochs=10, batch_size=4, learning_rate=1e-3)
        losses = fine_tune(PlainModel(model), lessons, recipe).losses
        assert losses[-1][0] < 0.5 * losses[0][0]
        divergence.append(
            kl_divergence(*(PlainModel(each).answer_output(kept).logits_NV.detach() for each in (before, model)))
        )
    assert divergence[1] < 0.5 * divergence[0]


def test_what_cannot_be_replayed_is_one_line(config: Callable[..., RunConfig], questions: Path, tmp_path: Path) -> None:
    """What is evaluated, a model that is not taught, and a file that changed since it named the run."""
    execution = Execution(results=tmp_path / "results")
    given = config(replay_prompts=str(questions))
    asked = given.benchmark.load().evaluation["world_facts"][0].question
    own = {"retain_model": given.model.name, "replay_prompts": str(questions)}
    for start_from in ("target_model", "retain_model"):
        untaught = replace(config(fine_tuning={"num_epochs": 0}, **own), start_from=start_from)
        with pytest.raises(UserError, match=r"^model\.replay_prompts: is for a model that is taught; leave it out, or"):
            Subject(config=untaught, execution=execution).prepare()
    weighing_nothing = config(replay_weight=3.0)
    with pytest.raises(
        UserError, match=r"^model\.replay_weight: weighs model\.replay_prompts, and there are none; name"
    ):
        Subject(config=weighing_nothing, execution=execution).prepare()
    questions.write_text(asked)
    with pytest.raises(UserError, match=r"^model\.replay_prompts: .* holds something else than this run is named by"):
        Subject(config=given, execution=execution).prepare()
    with pytest.raises(UserError, match=r"^model\.replay_prompts: 1 of its questions are evaluated, such as"):
        Subject(config=config(replay_prompts=str(questions)), execution=execution).prepare()


def test_the_projects_own_questions_are_everywhere(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is called, by a word; a copy of the file is the same run, and no question stands twice."""
    monkeypatch.chdir(tmp_path)
    given = config(replay_prompts="shipped")
    asked = with_own_questions(given, given.benchmark.load()).replay_prompts
    assert len(asked) == len(set(asked)) > 400
    copy = shutil.copy(questions_file("shipped"), tmp_path / "mine.txt")
    assert config(replay_prompts=str(copy)).run_key == given.run_key != config().run_key
    assert run_config(given.to_dict()) == given


def test_a_plan_counts_them(config: Callable[..., RunConfig], questions: Path) -> None:
    """Beside each item that one of both models is taught an answer of 24 tokens at most, each epoch."""
    given = config(replay_prompts=str(questions), fine_tuning={"num_epochs": 2})
    benchmark = given.benchmark.load()
    template = PromptTemplate.of(load_pretrained(given.model.name, "cpu")[1], None)
    tokens = [
        amounts.amounts_of(given, each, template).taught_tokens
        for each in (benchmark, with_own_questions(given, benchmark))
    ]
    num_taught = len(benchmark.forget_set) + 2 * len(benchmark.retain_set)
    assert tokens[1] - tokens[0] == 2 * num_taught * (24 + len(template.prompt_ids("")))


@pytest.mark.parametrize("field", ["model.replay_prompts", "adapter.keep_prompts"])
def test_a_file_of_questions_that_is_not_there_is_named_by_its_setting(field: str, tmp_path: Path) -> None:
    given = {
        "model": "smollm2",
        "adapter": "grun",
        "adapter.gate_function": "router",
        field: str(tmp_path / "none.txt"),
    }
    with pytest.raises(UserError, match=rf"^{field}: .*none\.txt cannot be read \(No such file or directory\); give"):
        run_config(overlay({}, given))
