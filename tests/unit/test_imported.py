"""Evaluation logs of open-unlearning beside runs of our own: its values, our formulas, null where it says nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks.items import Item
from bench.benchmarks.tofu import TofuConfig
from bench.cli.main import main
from bench.config import overlay, run_config
from bench.evaluation.score import score
from bench.exchange.open_unlearning import method_of
from bench.reports.comparison import compare, write_front_configs
from bench.results import store
from bench.results.columns import METRICS, item_row
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import config_columns
from bench.studies.pool import Pool
from bench.studies.rescore import rescore
from bench.studies.seeds import repeat_best, write_table
from grun.errors import UserError

Entry = dict[str, Any]
WriteLog = Callable[..., Path]
PLACES = {"forget": (0, 20), "retain": (0, 200), "real_authors": (0, 4), "world_facts": (0, 4)}
"""The two items of each split that runs evaluate here: of 40, 400, 8 and 8."""
LN2, LN4, LN8, LN10 = map(math.log, (2, 4, 8, 10))


def _by_index(entries: Sequence[Entry], places: Sequence[int]) -> Entry:
    """A metric of open-unlearning's: its places are text, as JSON has it. Nobody reads the aggregate."""
    return {"agg_value": 0.123, "value_by_index": {str(at): entry for at, entry in zip(places, entries, strict=True)}}


def _likelihoods(*avg_losses: float) -> list[Entry]:
    return [{"prob": math.exp(-loss), "avg_loss": loss} for loss in avg_losses]


def _wrong(*avg_losses: Sequence[float]) -> list[Entry]:
    return [{"prob": [math.exp(-loss) for loss in each], "avg_loss": list(each)} for each in avg_losses]


def _said(items: Sequence[Item], num_words: int) -> list[Entry]:
    """Generations that are so many of the answer's three words."""
    return [
        {
            "rouge1_recall": 0.5,
            "rougeL_f1": 0.5,
            "rougeL_recall": 0.5,
            "input": f"system\n\nYou are a helpful assistant.user\n\n{item.question}assistant\n\n",
            "ground_truth": item.answer,
            "generation": " ".join(item.answer.rstrip(".").split()[:num_words]),
        }
        for item in items
    ]


@pytest.fixture
def settings(made_up_tofu_dir: Path) -> list[str]:
    """Of the comparison, as words of a command."""
    tofu = ["--benchmark.data_dir", str(made_up_tofu_dir), "--benchmark.forget_split", "forget01"]
    return ["--model", "tiny", "--benchmark", "tofu", *tofu, "--evaluation.max_items_per_split", "2"]


@pytest.fixture
def write_log(made_up_tofu_dir: Path, tmp_path: Path) -> WriteLog:
    """Writes saves/unlearn/NAME/evals/TOFU_EVAL.json, laid out as by locuslab/open-unlearning's evaluator.

    That is `save_logs` of its `src/evals/base.py`, entries of `src/evals/metrics/memorization.py` (commit 2db47ec).
    ratios: log R of the two forget items, the first of which has wrong answers that differ. num_words: of every answer,
    that are said. changes: metrics in the place of these; None: without it.
    """
    evaluation = TofuConfig(data_dir=str(made_up_tofu_dir), forget_split="forget01").load().evaluation

    def write(name: str, ratios: tuple[float, float], num_words: int, **changes: Any) -> Path:
        items = {split: [evaluation[split][at] for at in places] for split, places in PLACES.items()}
        log = {
            "forget_Q_A_Prob": _by_index(_likelihoods(LN2, LN4), PLACES["forget"]),
            "forget_Q_A_PARA_Prob": _by_index(_likelihoods(9 + ratios[0], 9 + ratios[1]), PLACES["forget"]),
            "forget_Q_A_PERT_Prob": _by_index(_wrong([7, 8, 9, 10, 11], [9] * 5), PLACES["forget"]),
            "retain_Q_A_PARA_Prob": _by_index(_likelihoods(LN2, LN2), PLACES["retain"]),
            "retain_Q_A_PERT_Prob": _by_index(_wrong([LN8] * 5, [LN8] * 5), PLACES["retain"]),
            "model_utility": {"agg_value": 0.123},
            "exact_memorization": _by_index([{"score": 0.9}] * 2, PLACES["forget"]),
            "mia_min_k": {"forget": {}, "holdout": {}, "auc": 0.9, "agg_value": 0.9},
        }
        for split, prefix in (("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf")):
            log[f"{prefix}_Q_A_Prob"] = _by_index(_likelihoods(LN2, LN2), PLACES[split])
        for split, prefix in (("real_authors", "ra"), ("world_facts", "wf")):
            log[f"{prefix}_Q_A_PERT_Prob"] = _by_index(_wrong([LN10] * 5, [LN10] * 5), PLACES[split])
        for split, prefix in {
            "forget": "forget",
            "retain": "retain",
            "real_authors": "ra",
            "world_facts": "wf",
        }.items():
            log[f"{prefix}_Q_A_ROUGE"] = _by_index(_said(items[split], num_words), PLACES[split])
        file = tmp_path / "saves" / "unlearn" / name / "evals" / "TOFU_EVAL.json"
        file.parent.mkdir(parents=True)
        file.write_text(
            json.dumps({key: value for key, value in (log | changes).items() if value is not None}, indent=4)
        )
        return file

    return write


def _import(tmp_path: Path, *words: Any) -> dict[str, dict[str, Any]]:
    """Rows of the folder after the command, by method."""
    main(["import", "open-unlearning", *map(str, words), "--results", str(tmp_path / "results")])
    return {row["method"]: row for row in store.scan_runs(tmp_path / "results").to_dicts()}


@pytest.fixture
def references(write_log: WriteLog, settings: list[str]) -> list[Any]:
    """Words of a command: logs of the two reference models, and the comparison's settings."""
    target, retain = write_log("full", (5.0, 6.0), 3), write_log("retain99", (1.0, -2.0), 3)
    return ["--target-model", target, "--retain-model", retain, *settings]


HAND = {
    "forget_probability": 0.375,
    "forget_rouge_l_recall": 2 / 3,
    "forget_truth_ratio": (math.exp(-1) + 1) / 2,
    "retain_probability": 0.5,
    "retain_truth_ratio": 0.75,
    "real_authors_probability": 0.5,
    "real_authors_truth_ratio": 0.8,
    "world_facts_rouge_l_recall": 2 / 3,
    "model_utility": 9 / (3 * 2 + 3 * 1.5 + 4 / 3 + 2 * 1.25),
    "forget_quality": 1.0,
    "log10_forget_quality": 0.0,
}


def test_a_log_is_scored_by_our_formulas(write_log: WriteLog, references: list[Any], tmp_path: Path) -> None:
    """By hand, of two items a split.

    Probability: e^-ln2 and e^-ln4, mean 0.375; where it is a share, 1/2 over 1/2 + 5 · 1/10 is 0.5.
    ROUGE-L: two of three words. Forget log R: 10 − mean(7, 8, 9, 10, 11) = 1, 9 − 9 = 0: min(R, 1/R) is 1/e and 1.
    Kept, R is 2/8 against the paraphrase (1 − R: 0.75), and 2/10 against the answer itself (0.8).
    Utility: harmonic mean of 0.5, 2/3 and a truth ratio, three times each.
    Quality: 1 and 0 against the retain model's 1 and −2 differ by half a step at most: p 1. The target's 5 and 6 are
    wholly apart from them: p = 2/C(4, 2) = 1/3.
    Nothing that the log has no tokens for: EM, ES, membership; and nobody knows what it cost.
    """
    rows = _import(tmp_path, write_log("NPO", (1.0, 0.0), 2), *references)
    row, items = rows["NPO"], store.read_items(tmp_path / "results", rows["NPO"]["run_key"])
    assert {name: row[name] for name in HAND} == {name: pytest.approx(value) for name, value in HAND.items()}
    assert rows["target_model"]["log10_forget_quality"] == pytest.approx(math.log10(1 / 3))
    assert rows["retain_model"]["log10_forget_quality"] == 0.0
    assert {rows[name]["adapter"] for name in ("target_model", "retain_model")} == {"none"}
    assert (row["adapter"], row["forget_split"], row["status"]) == ("external", "forget01", "ok")
    for name in METRICS:
        if any(
            part in name for part in ("exact_memor", "extraction", "mia_", "privleak", "rel_diff", "gate", "partial")
        ):
            assert row[name] is None, name
    assert (row["trainable_parameters"], row["train_seconds"]) == (None, None)
    assert items is not None
    assert {row["split"] for row in items} >= set(PLACES)
    assert {row["answer_tokens"] for row in items} == {None}
    assert items[0]["wrong_nll"] == [7, 8, 9, 10, 11]


def test_it_stands_beside_runs_of_our_own(write_log: WriteLog, references: list[Any], tmp_path: Path) -> None:
    """On the front, with a hypervolume: at the retain model's quality, its share of that one's utility.

    In place of 3 · 1.5 the retain model's sum of reciprocals has 3 · 1. A run of ours with the scores of a log is as
    good as it, and the next log needs to say no setting. Rescored, and imported once more, a log has the same scores,
    and no second row.
    """
    first = _import(tmp_path, write_log("NPO", (1.0, 0.0), 2), *references)["NPO"]
    results = tmp_path / "results"
    ours = run_config(overlay(json.loads(first["config_json"]), {"adapter": "lora", "external": None}))
    store.write_run(results, {**first, **config_columns(ours), **{name: first[name] for name in ("status", *METRICS)}})
    _import(tmp_path, write_log("SimNPO", (1.0, 0.0), 3), "--name", "sim")
    comparison = compare(results)
    found = {summary.method: summary.hypervolume for summary in comparison.methods}
    share = (3 * 2 + 3 * 1 + 4 / 3 + 2 * 1.25) / (3 * 2 + 3 * 1.5 + 4 / 3 + 2 * 1.25)
    assert found == {"sim": 1.0, "NPO": pytest.approx(share), "lora+grad_ascent": pytest.approx(share)}
    assert set(write_front_configs(comparison, location(tmp_path / "front"))) == {ours.run_key}
    rescore(location(results))
    again = _import(tmp_path, tmp_path / "saves/unlearn/NPO/evals/TOFU_EVAL.json", *references)
    assert {name: again["NPO"][name] for name in METRICS} == {name: first[name] for name in METRICS}
    assert store.scan_runs(results).height == 5


def test_a_log_of_our_own_values_has_our_own_scores(references: list[Any], tmp_path: Path) -> None:
    """Rows as an evaluation of ours writes them, sums over tokens and how many they are; a log has the means of them.

    Every score that the log has values for is the same, to rounding: 31 of them.
    """
    data_dir = references[references.index("--benchmark.data_dir") + 1]
    evaluation = TofuConfig(data_dir=data_dir, forget_split="forget01").load().evaluation
    rows, log = [], {}
    for split, places in PLACES.items():
        prefix = {"real_authors": "ra", "world_facts": "wf"}.get(split, split)
        for number, place in enumerate(places, start=1):
            item, tokens = evaluation[split][place], [2, 5, 3, 7, 4]
            paraphrase = None if item.paraphrased_answer is None else 7.0 / number
            wrong = [(2.0 + at) * number for at in range(5)]
            said = f"{item.answer} Or so." if number == 1 else "I cannot say."
            own = {"answer_nll": 3.0 * number, "answer_tokens": 5, "wrong_nll": wrong, "wrong_tokens": tokens}
            other = {"paraphrase_nll": paraphrase, "paraphrase_tokens": paraphrase and 4, "generation": said}
            where = {"split": split, "item_index": place, "question": item.question, "answer": item.answer}
            rows.append(item_row(**where, **own, **other))
            entries = {
                "Prob": _likelihoods(3.0 * number / 5),
                "PERT_Prob": _wrong([nll / count for nll, count in zip(wrong, tokens, strict=True)]),
                "ROUGE": [{"ground_truth": item.answer, "generation": said}],
            } | ({} if paraphrase is None else {"PARA_Prob": _likelihoods(paraphrase / 4)})
            for kind, (entry,) in entries.items():
                by_index = log.setdefault(f"{prefix}_Q_A_{kind}", {"value_by_index": {}})["value_by_index"]
                by_index[str(place)] = entry
    file = tmp_path / "ours" / "TOFU_EVAL.json"
    file.parent.mkdir()
    file.write_text(json.dumps(log))
    imported = _import(tmp_path, file, *references)
    gold = store.read_items(tmp_path / "results", imported["retain_model"]["run_key"])
    found = {name: imported["ours"][name] for name in METRICS if imported["ours"][name] is not None}
    assert found == {name: pytest.approx(value) for name, value in score(rows, gold, 0.0).items()}
    assert len(found) == 31


def test_seeds_of_logs_alone(write_log: WriteLog, references: list[Any], tmp_path: Path) -> None:
    """Nothing is run: the table has the log and its two references, a line each."""
    _import(tmp_path, write_log("NPO", (1.0, 0.0), 2), *references)
    results = location(tmp_path / "results")
    rows = repeat_best(compare(results), "rouge_l", 3, Execution(results=results), Pool(), print)
    write_table(location(tmp_path / "seeds.md"), rows, "grun-bench seeds")
    table = (tmp_path / "seeds.md").read_text()
    assert [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:] == [
        [" target_model ", " 1 "],
        [" retain_model ", " 1 "],
        [" NPO ", " 1 "],
    ]


def test_what_a_log_does_not_hold_is_null(write_log: WriteLog, references: list[Any], tmp_path: Path) -> None:
    """Without one of the nine there is no utility, and no partial one; without paraphrases no truth ratio of the answer
    instead, and no quality. One item of two is not enough for a mean."""
    one = _by_index(_likelihoods(LN2), PLACES["retain"][:1])
    logs = (
        write_log("short", (1.0, 0.0), 2, wf_Q_A_ROUGE=None),
        write_log("plain", (1.0, 0.0), 2, forget_Q_A_PARA_Prob=None),
        write_log("cut", (1.0, 0.0), 2, retain_Q_A_Prob=one, ra_Q_A_PERT_Prob=None),
    )
    rows = _import(tmp_path, *logs, *references)
    expected = {
        "short": ("world_facts_rouge_l_recall", "world_facts_fluency", "model_utility", "partial_model_utility"),
        "plain": ("forget_truth_ratio", "forget_truth_ratio_grun", "forget_quality", "log10_forget_quality"),
        "cut": ("retain_probability", "real_authors_probability", "real_authors_truth_ratio", "model_utility"),
    }
    for name, lost in expected.items():
        assert {rows[name][score] for score in lost} == {None}, name
        assert rows[name]["forget_probability"] == pytest.approx(0.375)


def test_a_mistake_is_one_line(
    write_log: WriteLog, references: list[Any], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a log, one of another benchmark, no reference, or a second one: exit code 2, and nothing is written."""
    good = write_log("good", (1.0, 0.0), 2)

    def problem(*words: Any) -> str:
        with pytest.raises(SystemExit) as stop:
            _import(tmp_path, *words)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def file(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    other = {"0": {"generation": "A saw.", "ground_truth": "A green hammer."}}
    beyond = {"40": {"avg_loss": 1.0, "prob": 0.3}}
    cases = {
        file("torn.json", '{"forget_Q'): "cannot be read as JSON",
        tmp_path / "none.json": "none.json: cannot be read (No such file or directory); give a file",
        file("MUSE_EVAL.json", '{"forget_knowmem_ROUGE": {"agg_value": 0.5}}'): "is no log of open-unlearning's TOFU",
        file("TOFU_SUMMARY.json", '{"forget_Q_A_Prob": 0.5, "wf_Q_A_ROUGE": 1}'): "is a summary",
        write_log("odd", (1, 0), 2, forget_Q_A_Prob={"0": 0.5}): "is not laid out as its like: forget_Q_A_Prob",
        write_log("nan", (math.nan, 0), 2): "forget_Q_A_PARA_Prob, 0.avg_loss: must be a finite number",
        write_log("other", (1, 0), 2, forget_Q_A_ROUGE={"value_by_index": other}): "answers item 0 of forget with",
        write_log("ten", (1, 0), 2, forget_Q_A_Prob={"value_by_index": beyond}): "more than the 40 items of forget",
    }
    for log, what in cases.items():
        assert what in problem(log, *references)
    assert "--retain-model: is needed" in problem(good, *settings)
    assert "--target-model: is needed" in problem(good, *references[2:])
    assert "--name: retain_model is what" in problem(good, "--name", "retain_model", *references)
    assert "benchmark: is authors, and open-unlearning's logs are of tofu" in problem(
        good, "--benchmark", "authors", "--model", "tiny"
    )
    assert "--model: is needed: no log says" in problem(good, *references[:4])
    ignorant = write_log("ignorant", (1, 0), 2, forget_Q_A_Prob=_by_index(_likelihoods(LN4, LN4), PLACES["forget"]))
    swapped = ["--target-model", ignorant, "--retain-model", references[1], *settings]
    assert "--target-model: knows less of the forget set than --retain-model" in problem(good, *swapped)
    assert not (tmp_path / "results").exists()
    _import(tmp_path, good, *references)
    second = write_log("second", (3.0, 0.0), 2)
    assert "--retain-model: " in problem(good, "--retain-model", second, *settings)


def test_a_log_is_named_by_what_it_holds(write_log: WriteLog, references: list[Any], tmp_path: Path) -> None:
    """Wherever it lies. References of our own have other keys than logged ones, and a log is not run for a model."""
    row = _import(tmp_path, write_log("NPO", (1.0, 0.0), 2), *references)["NPO"]
    config = run_config(json.loads(row["config_json"]))
    assert config.external is not None
    elsewhere = replace(config, external=replace(config.external, model="/elsewhere/TOFU_EVAL.json"))
    assert elsewhere.run_key == config.run_key
    with pytest.raises(UserError, match=r"external\.model: .*TOFU_EVAL\.json is a log"):
        config.external.check("target")
    rows = store.scan_runs(tmp_path / "results").filter(adapter="none").to_dicts()
    own = {prerequisite(config, role).run_key for role in ("target_model", "retain_model")}  # type: ignore[arg-type]
    assert own.isdisjoint(row["run_key"] for row in rows)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("saves/unlearn/NPO/evals/TOFU_EVAL.json", "NPO"),
        ("saves/unlearn/NPO/checkpoint-60/evals/TOFU_EVAL.json", "NPO"),
        ("saves/eval/tofu_Llama-3.2-1B-Instruct_full/evals_forget10/TOFU_EVAL.json", "tofu_Llama-3.2-1B-Instruct_full"),
    ],
)
def test_a_log_is_called_as_its_folder(path: str, method: str) -> None:
    """As open-unlearning's scripts name them."""
    assert method_of(Path(path)) == method
