"""The benchmarks' own promises, and what becomes of a malformed row; what every benchmark must keep is in
tests/contract."""

import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import sources
from bench.benchmarks.authors import AuthorsConfig
from bench.benchmarks.corpora import CorporaConfig
from bench.benchmarks.questions import QuestionsConfig
from bench.benchmarks.rwku import RwkuConfig
from bench.benchmarks.tofu import TofuConfig
from bench.benchmarks.wmdp import WmdpConfig
from bench.hub.data import HubPart
from grun.errors import UserError
from grun.prompts.template import PromptTemplate


def test_authors_stay_as_they_are() -> None:
    """Digests of all items as JSON, from when the pools of words stood in the code (commit 03aaabb)."""
    since = {
        "examples",
        "max_new_tokens",
        "corpus",
        "passage_tokens",
        "ends",
        "told",
        "config",
        "keep_prompts",
        "replay_prompts",
    }  # of items and benchmarks, which had no such thing

    def plain(of: Any) -> dict[str, Any]:
        return dataclasses.asdict(of, dict_factory=lambda pairs: {k: v for k, v in pairs if k not in since})

    many = AuthorsConfig(
        forget_split="forget10", num_authors=200, num_holdout_authors=20, num_similar_authors=30, seed=7
    )
    for config, digest in (
        (AuthorsConfig(), "0f7f8448d69e36aebab6c2953cd2ffde0aef4978c3e52e6643f6f289949d0327"),
        (many, "fd498b64225338cb9251591be66331b1906e4ca3b38189d9fc048c1b4f339a2a"),
    ):
        loaded = config.load()
        items = plain(loaded) | {"name": config.name, "forget_split": config.forget_split}  # which the items had
        items["knowledge_set"] = [plain(item) for item in loaded.knowledge_set]
        items["requests"] = list(items["requests"].values())  # they had no names then
        text = json.dumps(items, sort_keys=True, ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_authors_are_deterministic_and_seeded() -> None:
    assert AuthorsConfig().load() == AuthorsConfig().load()
    assert AuthorsConfig(seed=1).load().forget_set != AuthorsConfig().load().forget_set


def test_as_many_authors_as_may_be_asked_for_are_all_different() -> None:
    """There are 480 titles, and each author has two: beyond 240 authors the generator never ended. Sequels do."""
    config = AuthorsConfig(num_authors=1000, num_holdout_authors=100, forget_split="forget50")
    benchmark = config.load()
    items = [*benchmark.forget_set, *benchmark.retain_set, *benchmark.evaluation["holdout"]]
    assert len(benchmark.requests) == 500
    assert len({item.question for item in items}) == len(items) == 11_000


def test_authors_splits() -> None:
    """20 authors of 10 questions, the last 4 to forget, 2 more that nobody learns."""
    benchmark = AuthorsConfig().load()
    assert (len(benchmark.forget_set), len(benchmark.retain_set), len(benchmark.evaluation["holdout"])) == (40, 160, 20)
    questions = [
        item.question for item in [*benchmark.forget_set, *benchmark.retain_set, *benchmark.evaluation["holdout"]]
    ]
    assert len(set(questions)) == len(questions)


def test_authors_do_not_depend_on_how_many_there_are_to_forget() -> None:
    small, large = AuthorsConfig(forget_split="forget05").load(), AuthorsConfig(forget_split="forget20").load()
    assert [*small.retain_set, *small.forget_set] == [*large.retain_set, *large.forget_set]


def test_too_few_authors_is_an_error() -> None:
    with pytest.raises(UserError, match=r"benchmark.num_authors: forget05 of 5 authors is none; use at least 20"):
        AuthorsConfig(forget_split="forget05", num_authors=5).load()


@pytest.mark.parametrize(("split", "num_forget"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_whole_tofu(tofu_dir: str, split: str, num_forget: int) -> None:
    benchmark = TofuConfig(forget_split=split, data_dir=tofu_dir).load()  # type: ignore[arg-type]
    assert (len(benchmark.forget_set), len(benchmark.retain_set)) == (num_forget, 4000 - num_forget)
    sizes = {name: len(items) for name, items in benchmark.evaluation.items()}
    assert sizes == {"forget": num_forget, "retain": 400, "real_authors": 100, "world_facts": 117}


@pytest.mark.parametrize("num_items", [60, 200, 400])
def test_cut_tofu_keeps_rows_together(tofu_dir: str, num_items: int) -> None:
    """Every kept retain item is evaluated with its own wrong answers, in the order it is trained in."""
    benchmark = TofuConfig(forget_split="forget01", data_dir=tofu_dir, num_items=num_items).load()
    assert len(benchmark.retain_set) == num_items - 40
    evaluated = benchmark.evaluation["retain"]
    assert [item.pair for item in evaluated] == [item.pair for item in benchmark.retain_set]
    assert all(len(item.perturbed_answers) == 5 for item in evaluated)
    assert not {item.pair for item in benchmark.forget_set} & {item.pair for item in benchmark.retain_set}


def test_tofu_cut_beyond_the_last_400(tofu_dir: str) -> None:
    """Of the last 3,700 items, 100 + 360 retain items have wrong answers; of 600 beside forget10, the first 200."""
    benchmark = TofuConfig(forget_split="forget01", data_dir=tofu_dir, num_items=3700).load()
    assert len(benchmark.evaluation["retain"]) == 100 + 360
    kept = {item.pair for item in benchmark.retain_set}
    assert all(item.pair in kept for item in benchmark.evaluation["retain"])
    first = TofuConfig(forget_split="forget10", data_dir=tofu_dir, num_items=600).load()
    assert [item.pair for item in first.evaluation["retain"]] == [item.pair for item in first.retain_set]
    assert len(first.retain_set) == 200
    assert not {item.pair for item in first.forget_set} & {item.pair for item in first.retain_set}
    assert "holdout" not in first.evaluation


def test_whole_tofu_has_its_own_holdout(tofu_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many questions as are forgotten: of a folder where they are there, and always of the hub.

    Where they are not, those of a cut are what is cut off; and nothing is asked where they are not wanted.
    """
    folder = Path(shutil.copytree(tofu_dir, tmp_path / "tofu"))
    strangers = [{"question": f"Who is {n}?", "answer": f"Nobody, {n}."} for n in range(40)]
    (folder / "holdout01.json").write_text("".join(json.dumps(row) + "\n" for row in strangers))
    pairs = [(row["question"], row["answer"]) for row in strangers]

    def holdout(**settings: Any) -> list[tuple[str, str]] | None:
        found = TofuConfig(**{"forget_split": "forget01", "data_dir": str(folder), **settings}).load()
        asked = found.evaluation.get("holdout")
        return None if asked is None else [item.pair for item in asked]

    assert holdout() == pairs
    assert holdout(num_items=200) == pairs, "a model of the hub was taught what is cut off"
    assert holdout(holdout=False) is holdout(holdout=False, num_items=200) is None
    assert holdout(forget_split="forget05") is None
    cut = holdout(num_items=3500, forget_split="forget05")
    assert cut is not None
    assert (len(cut), bool(set(cut) & set(pairs))) == (200, False)

    def from_hub(part: HubPart, field: str) -> list[Any]:
        assert (part.dataset, part.split) == ("locuslab/TOFU", "train")
        return [json.loads(line) for line in (folder / f"{part.configuration}.json").read_text().splitlines()]

    monkeypatch.setattr("bench.sources.rows_of_hub", from_hub)
    assert holdout(data_dir=None) == pairs


GOOD = {
    "questions": ("forget", {"question": "q", "answer": "a"}),
    "corpora": ("forget", {"text": "a passage"}),
    "wmdp": ("wmdp_cyber", {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0}),
    "tofu": ("full", {"question": "q", "answer": "a"}),
    "rwku": ("forget_level2", {"subject": "Ada", "query": "q", "answer": "a", "type": "simple"}),
}
"""The part that a malformed row is put into, and a row of it that is not malformed."""
BAD: list[tuple[str, Any, str]] = [
    ("questions", {"question": "q", "anwser": "a"}, "anwser: unknown key; did you mean answer?"),
    ("questions", {"question": "q", "answer": "a", "id": 3}, "id: unknown key; known are question, answer, "),
    ("questions", {"question": "q", "answer": 5}, "answer: must be a valid string (got 5)"),
    ("questions", {"question": "q", "answer": None}, "answer: must be a valid string (got None)"),
    ("questions", {"question": "q", "answer": " "}, "answer: is empty; write a text"),
    ("questions", {"question": "q"}, "answer: is missing; each row needs question and answer"),
    ("questions", "q", "row: is no JSON object; write one with question and answer"),
    (
        "questions",
        {"question": "q", "answer": "a", "paraphrased_answer": 5},
        "paraphrased_answer: must be a valid string (got 5)",
    ),
    (
        "questions",
        {"question": "q", "answer": "a", "paraphrased_answer": None},
        "paraphrased_answer: is null; leave it out where there is none",
    ),
    (
        "questions",
        {"question": "q", "answer": "a", "perturbed_answers": ["w", ""]},
        "perturbed_answers.1: is empty; write a text",
    ),
    ("questions", {"question": "q", "answer": "a", "request": 3}, "request: must be a valid string (got 3)"),
    ("questions", {"question": "q", "answer": "\u200b\ufeff"}, "answer: is empty; write a text"),
    ("questions", {"question": "half a \ud83d", "answer": "a"}, "question: holds half a character; write it whole, or"),
    (
        "questions",
        {"question": "q", "answer": "a", "perturbed_answers": ["w"], "perturbed_answer": ["v"]},
        "perturbed_answer: stands beside perturbed_answers; write one of them",
    ),
    (
        "questions",
        {"question": "q", "answer": "a", "perturbed_answers": ["w", "a"]},
        "perturbed_answers: hold the right answer; write wrong ones only",
    ),
    ("corpora", {"txt": "a passage"}, "txt: unknown key; did you mean text?"),
    ("corpora", {"text": None}, "text: must be a valid string (got None)"),
    ("corpora", {"text": "\n"}, "text: is empty; write a text"),
    ("corpora", {"text": "the end \udc00"}, "text: holds half a character; write it whole, or leave it out"),
    (
        "wmdp",
        {"question": "q", "choices": ["a", "b", "c"], "answer": 0},
        "choices: must have at least 4 items, not 3",
    ),
    (
        "wmdp",
        {"question": "q", "choices": ["a", "b", "c", "d"], "answer": "B"},
        "answer: must be a valid integer (got 'B')",
    ),
    (
        "wmdp",
        {"question": "q", "choices": ["a", "b", "c", "d"], "answer": -1},
        "answer: must be greater than or equal to 0 (got -1)",
    ),
    ("wmdp", {"qestion": "q", "choices": list("abcd"), "answer": 1}, "qestion: unknown key; did you mean question?"),
    ("tofu", {"question": "q", "answer": None}, "answer: must be a valid string (got None)"),
    ("tofu", {"question": "q", "anser": "a"}, "anser: unknown key; did you mean answer?"),
    ("tofu", {"question": ["q"], "answer": "a"}, "question: must be a valid string (got ['q'])"),
    ("tofu", {"question": "q", "answer": ""}, "answer: is empty; write a text"),
    ("tofu", {"question": "q"}, "answer: is missing; each row needs question and answer"),
    (
        "rwku",
        {"subject": "Ada", "qeury": "q", "answer": "a", "type": "simple"},
        "qeury: unknown key; did you mean query?",
    ),
    ("rwku", {"subject": "Ada", "query": "q", "answer": 5, "type": "s"}, "answer: must be a valid string (got 5)"),
    ("rwku", {"subject": "Ada", "query": "q", "answer": None, "type": "s"}, "answer: must be a valid string (got"),
    ("rwku", {"subject": "Ada", "query": "\t", "answer": "a", "type": "s"}, "query: is empty; write a text"),
    ("rwku", {"subject": "Ada", "query": "q", "type": "s"}, "answer: is missing; each row needs subject and query and"),
    ("wmdp", {"question": None, "choices": list("abcd"), "answer": 1}, "question: must be a valid string (got None)"),
    ("wmdp", {"question": " ", "choices": list("abcd"), "answer": 1}, "question: is empty; write a text"),
    (
        "wmdp",
        {"question": "q", "choices": ["a", 2, "c", "d"], "answer": 1},
        "choices.1: must be a valid string (got 2)",
    ),
]


@pytest.fixture
def load(wmdp_dir: Path, rwku_dir: Path, tmp_path: Path) -> Callable[[str, str], Any]:
    """Loads a benchmark of harmless rows, one of whose parts is the given text."""

    def load(benchmark: str, text: str) -> Any:
        for name in ("forget", "retain"):
            (tmp_path / f"{name}.json").write_text(json.dumps(GOOD[benchmark][1]) + "\n")
        for file in {"wmdp": wmdp_dir, "rwku": rwku_dir}.get(benchmark, tmp_path).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / f"{GOOD[benchmark][0]}.json").write_text(text, encoding="utf-8")
        kinds: dict[str, Any] = {
            "questions": QuestionsConfig,
            "corpora": CorporaConfig,
            "wmdp": WmdpConfig,
            "tofu": TofuConfig,
            "rwku": RwkuConfig,
        }
        return kinds[benchmark](data_dir=str(tmp_path)).load()

    return load


@pytest.mark.parametrize(("benchmark", "row", "problem"), BAD)
def test_a_malformed_row_is_named(load: Any, tmp_path: Path, benchmark: str, row: Any, problem: str) -> None:
    """In the third line, after a good row and a blank line."""
    part, good = GOOD[benchmark]
    with pytest.raises(UserError) as error:
        load(benchmark, f"{json.dumps(good)}\n\n{json.dumps(row)}\n")
    assert str(error.value).startswith(f"benchmark.data_dir: {tmp_path}/{part}.json, line 3: {problem}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
@pytest.mark.parametrize("benchmark", GOOD)
def test_an_empty_part_is_named(load: Any, benchmark: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"{GOOD[benchmark][0]}\.json is empty; write at least one row with"):
        load(benchmark, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"text": "a b"}\n{"text"', "line 2 is not JSON (Expecting ':' delimiter"),
        ('["a b", ', "begins like a JSON array, but is none (Expecting value"),
    ],
)
def test_what_is_not_json_is_named(load: Any, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        load("corpora", text)


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "a\u2028b\x85c"}\r\n{"text": "d e"}',
        '\ufeff{"text": "a\u2028b\x85c"}\n{"text": "d e"}\n',
        '[{"text": "a\u2028b\x85c"},\n {"text": "d e"}]',
        '\ufeff["a\u2028b\x85c", "d e"]',
    ],
    ids=["lines", "lines with a byte order mark", "array", "array of texts"],
)
def test_json_as_people_have_it(load: Any, text: str) -> None:
    """JSON lines, or MUSE's arrays; separators of other kinds inside a string do not end a line."""
    assert [item.answer for item in load("corpora", text).forget_set] == ["a\u2028b\x85c", "d e"]


def test_wrong_answers_under_tofus_own_name(load: Any) -> None:
    rows = '{"question": "q", "answer": "a", "perturbed_answer": ["v", "w"]}\n'
    assert load("questions", rows).forget_set[0].perturbed_answers == ("v", "w")


def test_no_passage_is_dropped_for_want_of_blanks(load: Any) -> None:
    """Nine Chinese passages, of which one has a blank: nine."""
    rows = [{"text": f"第{number}段文字没有空格。"} for number in range(8)] + [{"text": "有 空格。"}]
    assert len(load("corpora", "\n".join(json.dumps(row) for row in rows)).forget_set) == 9


def test_a_passage_of_one_token_is_named(load: Any) -> None:
    class Characters:
        eos_token_id = 0
        chat_template = None

        def __call__(self, text: str, **kwargs: Any) -> Any:
            return type("Ids", (), {"input_ids": [ord(character) for character in text]})

    (item,) = load("corpora", '["字"]').forget_set
    with pytest.raises(UserError, match=r"the passage '字' is a single token, with no beginning; leave it out"):
        item.example(PromptTemplate.of(Characters()))


def test_repeats_are_said(load: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The forget set has the retain set's only item twice, and one of its own; the holdout set both, and one more."""
    sources.say.cache_clear()
    row = json.dumps(GOOD["questions"][1])
    rows = [GOOD["questions"][1], {"question": "r", "answer": "a"}, {"question": "s", "answer": "a"}]
    (tmp_path / "holdout.json").write_text(json.dumps(rows))
    with caplog.at_level(logging.WARNING):
        assert len(load("questions", f'{row}\n{row}\n{{"question": "r", "answer": "a"}}\n').forget_set) == 3
    assert caplog.messages == [
        "benchmark.data_dir: 1 item is in the forget set and in the retain set too: forgotten and kept at once",
        "benchmark.data_dir: 2 items are in the holdout set, and trained on: no stranger",
        "benchmark.data_dir: 1 item is in the forget set more than once",
    ]


def test_passages_of_cyber_may_be_longer(wmdp_dir: Path, fresh_target: Any) -> None:
    """Of some thirty tokens, twelve of cyber are read and all of biology; a passage of each in turn, and named so."""
    _, template = fresh_target()
    forget = WmdpConfig(data_dir=str(wmdp_dir), forget_split="bio_cyber", cyber_tokens=12).load().forget_set
    assert [item.corpus for item in forget[:4]] == 2 * ["bio_forget", "cyber_forget"]
    read = {item.corpus: len(item.example(template)) + 1 for item in forget[:2]}
    assert read["cyber_forget"] == 12 < read["bio_forget"]


def test_short_passages_of_wmdp_are_counted(wmdp_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sixteen passages of the forget corpus and the word `short`."""
    sources.say.cache_clear()
    with caplog.at_level(logging.WARNING):
        WmdpConfig(data_dir=str(wmdp_dir)).load()
    assert caplog.messages[0] == (
        "bio_forget: 1 of 17 passages are left out, being of at most 50 characters (benchmark.min_characters)"
    )


@pytest.mark.parametrize(
    ("part", "change", "problem"),
    [
        # Null in one of four hundred: forget quality would have been NaN.
        ("forget10_perturbed", {"paraphrased_answer": None}, "paraphrased_answer: must be a valid string (got None)"),
        ("forget10_perturbed", {"perturbed_answer": []}, "perturbed_answer: must have at least 1 item"),
        ("retain_perturbed", {"perturbed_answer": "A saw."}, "perturbed_answer: must be a valid list (got 'A saw.')"),
        ("retain_perturbed", {"perturbed_answer": ["A saw.", None]}, "perturbed_answer.1: must be a valid string"),
        ("world_facts_perturbed", {"answer": "\n"}, "answer: is empty; write a text"),
    ],
)
def test_a_malformed_row_of_tofu_is_named(
    made_up_tofu_dir: Path, tmp_path: Path, part: str, change: dict[str, Any], problem: str
) -> None:
    for file in made_up_tofu_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    rows = (tmp_path / f"{part}.json").read_text().splitlines()
    rows[6] = json.dumps({**json.loads(rows[6]), **change})
    (tmp_path / f"{part}.json").unlink()
    (tmp_path / f"{part}.json").write_text("\n".join(rows))
    with pytest.raises(UserError) as error:
        TofuConfig(data_dir=str(tmp_path)).load()
    assert str(error.value).startswith(f"benchmark.data_dir: {tmp_path}/{part}.json, line 7: {problem}")


@pytest.mark.parametrize("name", ["paraphrased_answer", "paraphrased_question", "perturbed_answers", "request"])
def test_half_a_column_is_named(load: Any, name: str) -> None:
    """What some lines have and others lack would be scored, or asked for, of some items only."""
    row = GOOD["questions"][1]
    other = row | {name: ["w"] if name == "perturbed_answers" else "w"}
    with pytest.raises(UserError, match=rf"forget\.json has {name} on some lines; give all or none"):
        load("questions", f"{json.dumps(row)}\n{json.dumps(other)}\n")
