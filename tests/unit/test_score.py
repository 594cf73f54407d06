"""Rows to scores: every column is made by some rows, and made anew from stored ones."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from bench.benchmarks import SPLITS
from bench.evaluation.score import score
from bench.metrics import rouge
from bench.metrics.rouge import RougeL
from bench.metrics.table import SPLIT_METRICS
from bench.results import store
from bench.results.columns import METRICS, SCORES, TABLES, item_row
from bench.results.storage import location
from bench.splits import RUN_METRICS
from bench.studies.rescore import rescore
from grun.forget_losses import ForgetLossConfig


def row_of(split: str, index: int, **columns: Any) -> dict[str, Any]:
    """What a gated model's evaluation writes of one item of the split."""
    kind = SPLITS[split].kind
    row = item_row(
        split=split,
        item_index=index,
        question="q",
        answer="the red fern",
        generation=None if kind in ("choice", "whole") else "the blue fern",
        gate=[0.75, 0.25 + 0.1 * index],
    )
    if kind != "attack":
        row |= {"answer_nll": 1.0 + index, "answer_tokens": 3, "wrong_nll": [2.0, 4.0], "wrong_tokens": [2, 2]}
    if kind in ("question", "text", "passage", "whole"):
        row |= {
            "token_nll": [0.25, 0.5, 0.25 + index],
            "token_is_argmax": [True, False, True],
            "token_mean_log_p": [-1.0, -1.0, -1.0],
            "token_std_log_p": [1.0, 1.0, 1.0],
            "gradient_norm": 1.0 + index,
        }
    return row | columns


def test_scores_are_exactly_the_columns() -> None:
    """Rows of TOFU's splits give TOFU's utility, those of other benchmarks theirs; together every column."""
    rows = [row_of(split, index) for split in SPLITS for index in range(2)]
    musesown = [row for row in rows if row["split"] == "retain_knowmem"]
    others = [row for row in rows if row["split"] != "retain_knowmem"]
    found = score(others, others, 0.5)
    partial = score(musesown, None, 0.5)
    assert set(found) | set(partial) == set(METRICS)
    for name, value in found.items():
        low, high = SCORES[name].low, SCORES[name].high
        assert low is None or value >= low, name
        assert high is None or value <= high, name


def test_every_score_is_explained() -> None:
    """Each metric has its row in docs/metrics.md, in the part that it belongs to; so has each column, and each loss."""
    _, *parts = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("\n## ")
    parts = [parts[0], parts[1], "\n".join(parts[2:-1]), parts[-1]]
    names = [" ".join(re.findall(r"^\| (.*?) \|", part, re.MULTILINE)) for part in parts]
    of_split, of_run, columns, losses = (set(re.findall(r"`([\w<>]+)`", each)) for each in names)
    assert of_split == {name for metrics in SPLIT_METRICS.values() for name in metrics}
    assert of_run == set(RUN_METRICS)
    assert losses == {loss.name for loss in get_args(ForgetLossConfig)}
    scores = {f"{split}_{name}" for split in (*SPLITS, "requested") for name in of_split} | of_run
    held = {name for schema in TABLES.values() for name in schema.names}
    assert columns - {"requested_<metric>"} == held - scores


def test_scores_by_kind_of_split() -> None:
    """Two of three words in order: ROUGE-L 2/3. Right answer 1 and 2 nats, least wrong one 2: right once in two.

    That is 1/2 ± √(1/2 · 1/2 / 1). Of three tokens the first and last are first choices: EM 2/3, ES 1/3.
    Of the generation's 13 three-letter sequences the answer has 7: its fluency is 7/13.
    Gates open at 0.5: all of them, by their first layer. An attack's answers are scored by ROUGE-L alone.
    """
    rows = [row_of(split, index) for split in ("mmlu", "forget_verbatim", "forget_8_bit") for index in range(2)]
    assert score(rows, None, 0.5) == {
        "mmlu_accuracy": 0.5,
        "mmlu_accuracy_stderr": pytest.approx(0.5),
        "mmlu_gate_mean": pytest.approx(0.525),
        "mmlu_gate_open_share": 1.0,
        "forget_verbatim_rouge_l_f1": pytest.approx(2 / 3),
        "forget_verbatim_rouge_l_recall": pytest.approx(2 / 3),
        "forget_verbatim_fluency": pytest.approx(7 / 13),
        "forget_verbatim_exact_memorization": pytest.approx(2 / 3),
        "forget_verbatim_extraction_strength": pytest.approx(1 / 3),
        "forget_verbatim_gate_mean": pytest.approx(0.525),
        "forget_verbatim_gate_open_share": 1.0,
        "forget_8_bit_rouge_l_recall": pytest.approx(2 / 3),
        "forget_8_bit_gate_shut_share": 0.0,
    }


def test_a_whole_answer_that_does_not_end_is_known() -> None:
    """[right, right, right, EOS not]: every token of the answer is there, EM and ES 1; with a miss 2/3 and 1/3."""
    whole = row_of("forget", 0, token_is_argmax=[True, True, True, False])
    found = score([whole], None, 0.0)
    assert (found["forget_exact_memorization"], found["forget_extraction_strength"]) == (1.0, 1.0)
    lost = score([row_of("forget", 0, token_is_argmax=[True, False, True, True])], None, 0.0)
    assert lost["forget_exact_memorization"] == pytest.approx(2 / 3)
    assert lost["forget_extraction_strength"] == pytest.approx(1 / 3)


def _of(split: str, *token_nll: float) -> dict[str, Any]:
    num_tokens = len(token_nll)
    spread = {"token_mean_log_p": [0.0] * num_tokens, "token_std_log_p": [1.0] * num_tokens}
    return row_of(
        split,
        0,
        token_nll=list(token_nll),
        token_is_argmax=[True] * num_tokens,
        gate=None,
        gradient_norm=None,
        **spread,
    )


def test_membership_leaves_the_end_of_an_answer_out() -> None:
    """Answers of five tokens and an EOS: min-k takes 2 of 5. Forget 1, 1 (the EOS 9 aside), holdout 2, 2: AUC 1.

    With the EOS in, the forget item's least likely tokens were 9 and 1, and the AUC 0. Without a retain model privleak
    is against 0.5: 100 · (0 − 0.5)/0.5 = −100, rel_diff 100 · (1 − 0.5)/0.5. Passages keep their last token: AUC 0.
    """
    rows = [_of("forget", 1, 1, 1, 1, 1, 9), _of("holdout", 2, 2, 2, 2, 2, 0)]
    found = score(rows, None, 0.0)
    assert (found["mia_min_k_auc"], found["mia_min_k_plus_auc"]) == (1.0, 1.0)
    assert (found["privleak"], found["abs_privleak"], found["rel_diff"]) == (-100.0, 100.0, 100.0)
    passages = [{**row, "split": f"{row['split']}_verbatim"} for row in rows]
    assert score(passages, None, 0.0)["mia_min_k_auc"] == 0.0


def test_privleak_is_against_the_retain_model_where_there_is_one() -> None:
    """AUC 1, where the retain model's forget item is the less likely one, AUC 0: 100 · (0 − 1)/1 = −100."""
    rows = [_of("forget", 1, 1, 1, 0), _of("holdout", 2, 2, 2, 0)]
    gold = [_of("forget", 2, 2, 2, 0), _of("holdout", 1, 1, 1, 0)]
    assert score(gold, rows, 0.0)["rel_diff"] == -100.0, "AUC 0 against 1"
    assert score(rows, gold, 0.0)["privleak"] == -100.0
    assert score(rows, rows, 0.0)["privleak"] == 0.0


def test_membership_by_reference_and_by_gradient_norm() -> None:
    """Mean nll 1 and 3 (forget, holdout), under the retain model 2 and 2: members by 1 and −1, AUC 1, as by loss.

    Swapped, where the retain model finds the holdout item the likelier by far (2 and 0): 2 − 1 = 1, 0 − 3 = −3, AUC 1
    too; where it finds the forget item so (0 and 5): −1 and 2, AUC 0, whatever the loss says. A model is its own
    reference: ties, ½. Gradients of length 1 and 2: the short one is the member's. They need to have been measured.
    """
    own = [_of("forget", 1, 1), _of("holdout", 3, 3)]
    for gold, auc in (((2, 2), 1.0), ((2, 0), 1.0), ((0, 5), 0.0), ((1, 3), 0.5)):
        rows = [_of("forget", gold[0], gold[0]), _of("holdout", gold[1], gold[1])]
        assert score(own, rows, 0.0)["mia_reference_auc"] == auc
    assert "mia_reference_auc" not in score(own, None, 0.0)
    assert "mia_gradnorm_auc" not in score(own, own, 0.0)
    for norms, auc in (((1.0, 2.0), 1.0), ((2.0, 1.0), 0.0)):
        rows = [{**row, "gradient_norm": norm} for row, norm in zip(own, norms, strict=True)]
        assert score(rows, None, 0.0)["mia_gradnorm_auc"] == auc


def _folder(folder: Path, *generations: str) -> None:
    config = {"benchmark": {}, "model": {}, "evaluation": {}}
    run = {"run_key": "a", "status": "ok", "method": "lora+npo", "created_at": datetime.now(UTC)}
    items = [row_of("forget", index, generation=text, gate=None) for index, text in enumerate(generations)]
    store.write_run(folder, run | {"config_json": json.dumps(config)} | score(items, None, 0.0), items)


def test_rescoring_follows_a_changed_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 of 3 words in order, then all: 5/6. Under another definition (1/4 for everything) the same rows give 1/4."""
    _folder(tmp_path, "the blue fern", "the red fern")
    assert store.scan_runs(tmp_path)["forget_rouge_l_recall"].to_list() == [pytest.approx(5 / 6)]
    monkeypatch.setattr(rouge, "rouge_l", lambda answer, generation: RougeL(0.25, 0.25))
    assert rescore(tmp_path) == (1, 0)
    assert store.scan_runs(tmp_path)["forget_rouge_l_recall"].to_list() == [0.25]


def test_rescoring_follows_the_stored_generations(tmp_path: Path) -> None:
    """A generation changed on disk to have nothing of the answer: (0 + 1)/2."""
    _folder(tmp_path, "the blue fern", "the red fern")
    items = store.read_items(tmp_path, "a")
    assert items is not None
    items[0]["generation"] = "nobody knows"
    store.write_rows(location(tmp_path), "items", "a", items)
    rescore(tmp_path)
    assert store.scan_runs(tmp_path)["forget_rouge_l_recall"].to_list() == [0.5]
