"""lm-evaluation-harness on an unlearned model: what its own model class says of the base, item by item."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.config import RunConfig
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.errors import UserError
from grun.model.forward import PlainModel
from grun.prompts.template import PromptTemplate

lm_eval_tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed; pip install -e '.[lm-eval]'")
QUIZ = [
    ("Which of these is a fruit?", ["A hammer", "A pear", "A cloud", "A violin"], 1),
    ("Which of these can fly?", ["A sparrow", "A spoon", "A sofa", "A stone"], 0),
    ("Which of these is a colour?", ["Seven", "Lunch", "Green", "A bicycle"], 2),
    ("Which of these is a number?", ["A lake", "A sock", "Snow", "Twelve"], 3),
    ("Which of these is a very long answer?", ["No", "Yes", "This one, which goes on and on for a while", "Oh"], 2),
]
"""A harmless quiz in the schema of WMDP and MMLU."""
TASKS = {
    "harmless_quiz": """
task: harmless_quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
num_fewshot: 0
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about everyday things.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\
  \\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
    "harmless_text": """
task: harmless_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{choices | join(' or ')}}}}"
metric_list: [{{metric: word_perplexity}}]
""",
    "harmless_continuation": """
task: harmless_continuation
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 12}}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of local tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "quiz.json"
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUIZ]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


_indexed = cache(lm_eval_tasks.TaskManager)


@pytest.fixture(autouse=True)
def indexed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of lm-eval's own tasks takes seven seconds: all tests ask the same one."""
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", _indexed)


def _said(found: dict[str, Any], task: str) -> list[Any]:
    return [sample["filtered_resps"] for sample in found["samples"][task]]


def test_our_model_class_says_what_theirs_does(
    fresh_target: Callable[[], tuple[Any, PromptTemplate]], tasks: Path
) -> None:
    """Log-likelihoods, greedy flags, whole texts and continuations; and a module with shut gates is the base."""
    from lm_eval.models.huggingface import HFLM

    from bench.evaluation.harness import UnlearnedLM, run_lm_eval

    model, template = fresh_target()
    theirs: Any = HFLM(pretrained=model, tokenizer=template.tokenizer, batch_size=2, max_length=128)
    gated = GrunConfig(layers=(1, 3)).attach(fresh_target()[0], 0)
    gated.train(False)
    set_gate_threshold(gated, 1.0)
    names = list(TASKS)
    expected = run_lm_eval(theirs, names, include=tasks, limit=None)
    for adapted in (PlainModel(model), gated):
        mine = UnlearnedLM(adapted, template.tokenizer, max_length=128, batch_size=2)
        found = run_lm_eval(mine, names, include=tasks, limit=None)
        for here, there in zip(_said(found, "harmless_quiz"), _said(expected, "harmless_quiz"), strict=True):
            assert [float(choice[0]) for choice in here] == pytest.approx([float(c[0]) for c in there], rel=1e-4)
            assert [str(choice[1]) for choice in here] == [str(choice[1]) for choice in there]
        assert _said(found, "harmless_continuation") == _said(expected, "harmless_continuation")
        assert found["results"]["harmless_quiz"]["acc,none"] == expected["results"]["harmless_quiz"]["acc,none"]
        perplexity = "word_perplexity,none"
        assert found["results"]["harmless_text"][perplexity] == pytest.approx(
            expected["results"]["harmless_text"][perplexity], rel=1e-4
        )
    set_gate_threshold(gated, 0.0)
    with torch.no_grad():
        gated.edits["3"].learned_source.bias.fill_(30.0)
    open_gates = run_lm_eval(
        UnlearnedLM(gated, template.tokenizer, max_length=128, batch_size=2), names, include=tasks, limit=None
    )
    assert _said(open_gates, "harmless_quiz") != _said(expected, "harmless_quiz"), "the module is on"


def test_evaluate_runs_lm_eval(small_config: RunConfig, small_results: Path, tasks: Path, capsys: Any) -> None:
    (row,) = run(small_config, Execution(results=small_results))
    module = str(small_results / "modules" / row["train_key"])
    main(["evaluate", module, "--lm-eval", "harmless_quiz", "--lm-eval-include", str(tasks), "--lm-eval-limit", "3"])
    found = json.loads((small_results / "lm_eval" / f"{row['run_key']}.json").read_text())
    assert 0.0 <= found["results"]["harmless_quiz"]["acc,none"] <= 1.0
    assert len(found["samples"]["harmless_quiz"]) == 3
    assert "harmless_quiz" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        main(["evaluate", module, "--lm-eval", "no_such_task", "--lm-eval-include", str(tasks)])
    assert error.value.code == 2
    assert "no_such_task" in capsys.readouterr().err


def test_an_answer_as_long_as_the_context_leaves_no_question(
    fresh_target: Callable[[], tuple[Any, PromptTemplate]],
) -> None:
    """127 of 128 tokens leave one; 128 leave none, and a model asked nothing would be scored on it."""
    from bench.evaluation.harness import UnlearnedLM

    model, template = fresh_target()
    lm = UnlearnedLM(PlainModel(model), template.tokenizer, max_length=128, batch_size=2)
    for limit in (128, 256):
        request = SimpleNamespace(args=("Who wrote it?", {"until": ["\n"], "max_gen_toks": limit}))
        with pytest.raises(UserError, match=f"a task asks for {limit} tokens of a model of 128"):
            lm.generate_until([request])
    assert (
        len(lm.generate_until([SimpleNamespace(args=("Who wrote it?", {"until": ["\n"], "max_gen_toks": 127}))])) == 1
    )
