"""The node's prefix cache: built once, found damaged, evicted, refused; and what closed gates allow."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from bench.config import RunConfig
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.data import Example
from grun.engine import later_layers, prefix_cache
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.lm.reading import layer_output
from grun.model import behind
from grun.model.forward import PlainModel, set_answer_ends
from grun.prompts.template import PromptTemplate
from pyvene_custom.editing import Editing

EXAMPLES = [Example(prompt_ids=(3, 4 + i, 5), answer_ids=(6, 7 + i % 3, 1)) for i in range(6)]
ROOM = 10**9


class _Tokenizer:
    eos_token_id = 1
    pad_token_id = 0
    chat_template = None


def _llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    return _ready(model).to(dtype)


def _ready(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at birth, so that positions and keys matter
            if parameter.ndim > 1:
                parameter.mul_(5.0)
    set_answer_ends(model.eval(), PromptTemplate.of(_Tokenizer()))
    return model


def _edited(
    root: Path, *, model: Any = None, examples: list[Example] | None = None, max_bytes: int = ROOM
) -> tuple[EditedModel, list[str], int]:
    """A prepared GRUN model, the lines it logged, and how often building it reported progress."""
    lines: list[str] = []
    calls: list[int] = []
    adapted = GrunConfig(layers=(1, 3)).attach(model or _llama(), seed=0)
    adapted.use_prefix_caching(PrefixCaching(root=root, max_bytes=max_bytes, log=lines.append))
    adapted.announce(examples or EXAMPLES, generate=True, progress=lambda done, total: calls.append(done))
    adapted.train(False)
    return adapted, lines, len(calls)


def _shard(root: Path) -> Path:
    (shard,) = root.rglob("*.safetensors")
    return shard


def test_the_second_one_finds_it(tmp_path: Path) -> None:
    assert _edited(tmp_path)[2] > 0
    assert _edited(tmp_path)[2] == 0


def test_what_is_not_kept_is_not_computed(tmp_path: Path) -> None:
    """Six prompts of three tokens, the last edited first at layer 1 of 4, and answers of three: layers up to there read
    all, those above the prompts alone, which ran over the answers, too. Two examples are read once more, whole, and
    once from the cache, as a check."""
    model = _llama()
    read = [0] * 4
    for index, layer in enumerate(model.model.layers):

        def counting(hidden: Any, *args: Any, _run: Any = layer.forward, _index: int = index, **others: Any) -> Any:
            read[_index] += hidden.shape[0] * hidden.shape[1]
            return _run(hidden, *args, **others)

        layer.forward = counting
    _edited(tmp_path, model=model)
    prompts, answers, whole, checked = 6 * 2, 6 * 3, 2 * 5, 2 * 3
    assert read == [prompts + answers + whole] * 2 + [prompts + whole + checked] * 2


@pytest.mark.parametrize("harm", ["truncated", "one byte", "no index", "no shard"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, harm: str) -> None:
    before = _edited(tmp_path)[0].answer_output(EXAMPLES).logits_NV
    shard = _shard(tmp_path)
    if harm == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    elif harm == "one byte":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        time.sleep(0.01)  # so that the time of the last change tells
        shard.write_bytes(data)
    elif harm == "no index":
        (shard.parent / "index.json").unlink()
    else:
        shard.unlink()
    adapted, lines, built = _edited(tmp_path)
    assert built > 0
    assert lines == []
    assert torch.equal(adapted.answer_output(EXAMPLES).logits_NV, before)


def test_other_weights_or_examples_make_another_cache(tmp_path: Path) -> None:
    _edited(tmp_path)
    other = _llama()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1e-3
    assert _edited(tmp_path, model=other)[2] > 0
    assert _edited(tmp_path, examples=EXAMPLES[:-1])[2] > 0


def test_the_least_recently_used_cache_makes_room(tmp_path: Path) -> None:
    """Room for two and a half: after a, b, a again and c, it is b that has gone."""
    a, b, c = EXAMPLES[:2], EXAMPLES[2:4], EXAMPLES[4:]
    _edited(tmp_path, examples=a)
    room = int(2.5 * sum(file.stat().st_size for file in _shard(tmp_path).parent.iterdir()))
    for examples in (b, a, c):
        time.sleep(0.01)
        _edited(tmp_path, examples=examples, max_bytes=room)
    assert [_edited(tmp_path, examples=examples)[2] == 0 for examples in (a, c, b)] == [True, True, False]


def test_what_another_process_builds_is_left_alone_and_what_a_killed_one_left_goes(tmp_path: Path) -> None:
    """Making room, one comes upon others' half-built caches: as old as can be, and over the room by far."""
    for key in ("alive", "killed"):
        scratch = tmp_path / f".tmp-7-{key}"
        scratch.mkdir()
        (scratch / "0.safetensors").write_bytes(bytes(1000))
        (scratch / "index.json").write_text("{}")
        os.utime(scratch / "index.json", (0, 0))
    _edited(tmp_path / "elsewhere")
    room = sum(file.stat().st_size for file in _shard(tmp_path / "elsewhere").parent.iterdir())
    with FileLock(tmp_path / "alive.lock"):
        _edited(tmp_path, max_bytes=room)
    assert [each.name for each in tmp_path.glob(".tmp-*")] == [".tmp-7-alive"]


def test_what_vanishes_while_one_makes_room_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process evicts a cache between one's seeing its index and one's listing its files."""
    _edited(tmp_path, examples=EXAMPLES[:2])
    first, iterdir = _shard(tmp_path).parent, Path.iterdir

    def gone(folder: Path) -> Iterator[Path]:
        if folder == first:
            shutil.rmtree(first)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", gone)
    adapted, lines, built = _edited(tmp_path, examples=EXAMPLES[2:])
    assert (adapted.engine, built > 0, lines, first.exists()) == ("prefix_cache", True, [], False)


def test_a_cache_evicted_as_soon_as_it_is_there_serves_who_built_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _edited(tmp_path / "kept")[0].answer_output(EXAMPLES).logits_NV
    monkeypatch.setattr(prefix_cache, "_evict", lambda root, *, keep, max_bytes: shutil.rmtree(root / keep))
    adapted, lines, _ = _edited(tmp_path / "evicted")
    assert (adapted.engine, lines, list(tmp_path.glob("evicted/*/"))) == ("prefix_cache", [], [])
    assert torch.equal(adapted.answer_output(EXAMPLES).logits_NV, expected)


def test_processes_share_one_build(tmp_path: Path) -> None:
    """Two at once: one builds, the other waits and finds it."""
    script = (
        "import sys; from pathlib import Path; from test_prefix_cache import _edited; "
        "print(_edited(Path(sys.argv[1]))[2])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    built = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(count > 0 for count in built) == [False, True]


def test_a_cache_that_cannot_be_read_now_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer is no damage: the plain path serves, one line says so, and no file is touched."""
    expected = _edited(tmp_path)[0].answer_output(EXAMPLES).logits_NV
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}

    def fail(*arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(prefix_cache.PrefixCache, "opened", fail)
        adapted, lines, built = _edited(tmp_path)
    assert (adapted.engine, built, len(lines)) == ("plain", 0, 1)
    assert "cannot be read" in lines[0]
    torch.testing.assert_close(adapted.answer_output(EXAMPLES).logits_NV, expected, rtol=1e-4, atol=1e-4)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == before
    assert _edited(tmp_path)[2] == 0, "it serves again"


def test_too_big_a_cache_is_refused_in_one_line(tmp_path: Path) -> None:
    adapted, lines, _ = _edited(tmp_path, max_bytes=100)
    assert adapted.engine == "plain"
    assert len(lines) == 1
    assert "GRUN_BENCH_CACHE_GB" in lines[0]
    assert adapted.answer_output(EXAMPLES).logits_NV.shape == (18, 64)


class _ForgetfulLlama(LlamaForCausalLM):
    """Takes keys and values from a cache, and makes something else of them."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, position_ids=None if position_ids is None else position_ids * 0, **kwargs)


def test_a_model_without_keys_and_values_takes_the_plain_path(tmp_path: Path) -> None:
    config = MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, state_size=4, eos_token_id=1, pad_token_id=0
    )
    model = _ready(MambaForCausalLM(config))
    adapted, lines, _ = _edited(tmp_path, model=model)
    assert adapted.engine == "plain"
    assert len(lines) == 1
    assert "Mamba" in lines[0]


def test_a_model_that_means_something_else_by_its_cache_takes_the_plain_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _ready(_ForgetfulLlama(_llama().config))
    adapted, lines, _ = _edited(tmp_path, model=model)
    assert adapted.engine == "plain"
    assert len(lines) == 1
    assert "_ForgetfulLlama" in lines[0]


def test_shut_gates_are_the_base_model_bit_for_bit(tmp_path: Path) -> None:
    """On either path: below the threshold the logits are those of the same path without edits."""
    engine, plain = _edited(tmp_path)[0], GrunConfig(layers=(1, 3)).attach(_llama(), seed=0)
    cache = engine._caches[0]
    base_engine = later_layers.answer_output(engine.model, Editing({}), [cache], EXAMPLES).logits_NV
    base_plain = PlainModel(plain.model).answer_output(EXAMPLES).logits_NV
    for adapted, base in ((engine, base_engine), (plain, base_plain)):
        adapted.train(False)
        assert not torch.equal(adapted.answer_output(EXAMPLES).logits_NV, base)
        set_gate_threshold(adapted, 1.0)
        assert torch.equal(adapted.answer_output(EXAMPLES).logits_NV, base)


@pytest.mark.parametrize("edits", ["prompt_end", "answer"])
@pytest.mark.parametrize("share", [0.0, math.inf], ids=["a block a length", "one block"])
def test_answers_are_read_in_one_row(tmp_path: Path, edits: Any, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any lengths, in whatever blocks attention sees them: layers above the first edit are shown no padding, and
    logits, gates and gradients are pyvene's."""
    monkeypatch.setattr(behind, "BLOCK_SHARE", share)
    examples = [
        Example(prompt_ids=tuple(range(3, 5 + i % 3)), answer_ids=(*range(9, 9 + 5 * (i % 4)), 1)) for i in range(9)
    ]
    adapter = GrunConfig(layers=(1, 3), edits=edits)
    engine, plain = adapter.attach(_llama(), seed=0), adapter.attach(_llama(), seed=0).on_plain_path()
    engine.use_prefix_caching(PrefixCaching(root=tmp_path, max_bytes=ROOM, log=pytest.fail))
    engine.announce(examples, generate=False, progress=lambda done, total: None)
    found = []
    for adapted in (engine, plain):
        adapted.train(False)
        with layer_output(adapted.model, 2) as shown:
            output = adapted.answer_output(examples)
        output.scores.nll_B.sum().backward()
        gradients = [parameter.grad for parameter in adapted.trainable_parameters()]
        found.append((shown[0].shape[:2].numel(), output.logits_NV, output.gate_logit_BK, gradients))
    (read, *mine), (_, *theirs) = found
    assert read == sum(len(example.answer_ids) for example in examples)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16(tmp_path: Path) -> None:
    """The cache keeps the model's own type, and the engine agrees with pyvene to that type's rounding."""
    engine, lines, _ = _edited(tmp_path, model=_llama(torch.bfloat16))
    plain = GrunConfig(layers=(1, 3)).attach(_llama(torch.bfloat16), seed=0)
    plain.train(False)
    assert lines == []
    mine, theirs = engine.answer_output(EXAMPLES).logits_NV, plain.answer_output(EXAMPLES).logits_NV
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_greedy_answers_are_the_librarys(fresh_target: Callable[[], tuple[Any, PromptTemplate]]) -> None:
    """Our decoding drops finished answers on the way; `transformers` says the same, prompt by prompt."""
    model, template = fresh_target()
    prompts = [
        template.prompt_ids(f"{word} {number}?") for number, word in enumerate(["What", "Who", "is", "the", "a"])
    ]
    mine = PlainModel(model).generate(prompts, 20).answers
    for prompt, answer in zip(prompts, mine, strict=True):
        sequence = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt) :].tolist()
        assert answer == [token for token in sequence if token != template.tokenizer.eos_token_id]
    assert len({len(answer) for answer in mine}) > 1


@pytest.mark.parametrize("settings", [{}, {"edits": "answer", "gate_layer": 1.0}], ids=["paper", "latched, late"])
def test_a_curve_of_thresholds_is_what_each_threshold_gives_alone(
    settings: dict[str, Any],
    small_config: RunConfig,
    tmp_path: Path,
    assert_same_metrics: Callable[[dict[str, Any], dict[str, Any]], None],
) -> None:
    """The engine with all it reuses, against pyvene once a threshold: every score, and every answer word for word."""
    thresholds = (0.0, 0.05, 0.5, 0.95)
    executions = {
        "auto": Execution(results=tmp_path / "auto"),
        "plain": Execution(results=tmp_path / "plain", engine="plain"),
    }
    evaluation = replace(small_config.evaluation, max_items_per_split=10, max_new_tokens=12)
    config = replace(small_config, adapter=replace(small_config.adapter, **settings), evaluation=evaluation)
    run_prerequisites(config, executions["auto"])
    shutil.copytree(tmp_path / "auto", tmp_path / "plain")
    rows = {name: run(config, each, gate_thresholds=thresholds) for name, each in executions.items()}
    assert [row["engine"] for row in rows["auto"]] == ["prefix_cache"] * 4
    assert [row["engine"] for row in rows["plain"]] == ["plain"] * 4
    different = 0
    for mine, theirs in zip(rows["auto"], rows["plain"], strict=True):
        assert_same_metrics(mine, theirs)
        answers = []
        for engine in ("auto", "plain"):
            items = store.read_items(tmp_path / engine, mine["run_key"])
            assert items is not None
            answers.append([item["generation"] for item in items])
        assert answers[0] == answers[1]
        different += mine["forget_gate_open_share"] != rows["auto"][0]["forget_gate_open_share"]
    assert different or rows["auto"][0]["retain_gate_open_share"] != rows["auto"][-1]["retain_gate_open_share"]
