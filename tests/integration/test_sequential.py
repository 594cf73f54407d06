"""Requests one after another: reused is as good as measured, cut-off work goes on, a request can be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import evaluate
from bench.files import write_yaml
from bench.models.cache import cache_dir
from bench.models.prepare import prepared_model
from bench.models.pretrained import load_pretrained
from bench.results import store
from bench.results.requests import read_requests, scan_requests, write_requests
from bench.runs import training
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.training import TRAINING
from bench.sequential.request import RequestSequence, Variant, requests_of
from bench.sequential.run import run_sequence, train_modules
from bench.sequential.scores import prefill_seconds
from bench.sequential.studies import SequentialConfig, _best, read_sequential
from grun.adapters.grun import GrunConfig
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted, PlainModel
from grun.prompts.template import PromptTemplate
from grun.sequential import combine
from grun.training.unlearn import unlearn
from grun.unlearned import load

SUM, TOP, SOFT, SCALED = (
    Variant(combination=combination, gate_threshold=threshold)
    for combination, threshold in (("sum", 0.5), ("top_1", 0.5), ("sum", 0.0), ("scaled_by_number", 0.5))
)
CHAIN = Variant(combination=None, gate_threshold=None)


@pytest.fixture(scope="module")
def config(small_config: RunConfig) -> RunConfig:
    """Three requests of one author each, three retained authors, one of them like a forgotten one."""
    return run_config(
        overlay(
            small_config.to_dict(),
            {
                "benchmark.num_authors": 6,
                "benchmark.forget_split": "forget50",
                "benchmark.num_similar_authors": 1,
                "model.fine_tuning.num_epochs": 25,
                "model.fine_tuning.learning_rate": 0.006,
                "adapter.gate_function": "mlp_3",
                "forget_loss": "idk",
                "training.num_epochs": 60,
            },
        )
    )


def _sequence(config: RunConfig, *variants: Variant, extra: Any = (), num_requests: int = 3) -> RequestSequence:
    return RequestSequence(study="s", config=config, num_requests=num_requests, extra_requests=extra, variants=variants)


@pytest.fixture(scope="module")
def stacked(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Execution, RequestSequence]:
    """Three requests, one of them repeated, one for what the model never knew; under four variants."""
    execution = Execution(results=tmp_path_factory.mktemp("stacked"))
    sequence = _sequence(config, SUM, TOP, SOFT, SCALED, extra=("repeat", "unknown"))
    run_sequence(sequence, execution, lambda line: None)
    return execution, sequence


def _states(execution: Execution, sequence: RequestSequence, variant: Variant) -> list[list[dict[str, Any]]]:
    requests = sequence.requests()
    keys = [sequence.state_key(requests[:size], variant) for size in range(1, len(requests) + 1)]
    return [read_requests(execution.folder, key) for key in keys]


def _forgetting(states: Sequence[Sequence[dict[str, Any]]]) -> list[list[float]]:
    return [[row["forget_rouge_l_recall"] for row in state] for state in states]


def test_every_state_has_a_row_a_request(stacked: tuple[Execution, RequestSequence]) -> None:
    """Five states of five rows: what was asked for is forgotten, what was not is known, strangers were never known."""
    execution, sequence = stacked
    for variant in sequence.variants:
        states = _states(execution, sequence, variant)
        assert [len(state) for state in states] == [5] * 5
        assert [row["is_requested"] for row in states[1]] == [True, True, False, False, False]
        assert [row["request"] for row in (state[0] for state in states)] == ["001", "002", "003", "repeat", "unknown"]
        assert len({state[0]["added_parameters"] / size for size, state in enumerate(states, start=1)}) == 1
    first, *_, last = _forgetting(_states(execution, sequence, SUM))
    assert first[0] < 0.5, "forgotten"
    assert min(first[1:3]) > first[0] + 0.25, "not asked for yet; this small a model keeps its authors apart badly"
    assert max(last[:3]) < 0.6
    assert first[4] < 0.5, "never known"
    assert last[3] == last[0], "a repeated request is about the same questions"


def test_gates_open_for_their_own_requests(stacked: tuple[Execution, RequestSequence]) -> None:
    """The confusion matrix: a row for each evaluated request, a column for each module so far."""
    execution, sequence = stacked
    third = _states(execution, sequence, SUM)[2]
    confusion = [row["open_shares"] for row in third[:3]]
    assert [len(row) for row in confusion] == [3, 3, 3]
    for place, row in enumerate(confusion):
        assert row[place] == 1.0
    assert len(third[0]["retain_open_shares"]) == len(third[0]["similar_open_shares"]) == 3
    assert 0 <= third[0]["retain_gate_open_share"] <= third[0]["similar_gate_open_share"] <= 1


def test_requests_under_attack(stacked: tuple[Execution, RequestSequence]) -> None:
    """The same scores, beside them what came back of the requests so far; each asks its gate in other words."""
    execution, sequence = stacked
    hard = {"evaluation.robustness.relearn_items": 4, "evaluation.robustness.relearn_steps": 2}
    attacked = replace(
        sequence, config=run_config(overlay(sequence.config.to_dict(), hard)), variants=(SUM,), only_after=(1, 5)
    )
    run_sequence(attacked, execution, lambda line: None)
    calm, found = (_states(execution, each, SUM) for each in (sequence, attacked))
    columns = {f"requested_{name}_rouge_l_recall" for name in ("paraphrased_question", "prefix_attack", "relearned")}
    timed = {"run_key", "config_json", "created_at", "eval_seconds", "prefill_seconds", "bare_prefill_seconds"}
    for size in (1, 5):
        for before, row in zip(calm[size - 1], found[size - 1], strict=True):
            others = row.keys() - columns - timed - {"paraphrased_open_shares"}
            for name in others:
                value = before[name]
                assert row[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name
            assert all(0 <= row[name] <= 1 for name in columns)
    assert found[0][0]["requested_relearned_rouge_l_recall"] > found[0][0]["requested_rouge_l_recall"]
    shares = [row["paraphrased_open_shares"] for row in found[4]]
    assert [len(own) for own in shares[:4]] == [5] * 4
    assert min(own[place] for place, own in enumerate(shares[:3])) > 0.5
    assert shares[3] == shares[0]
    assert shares[4] is None, "the model never knew them"
    items = store.read_items(execution.folder, found[4][0]["run_key"])
    assert items is not None
    assert sum(row["split"] == "forget_paraphrased_question" for row in items) == 30


def _load(config: RunConfig) -> tuple[Any, Any, PromptTemplate]:
    source = prepared_model(config.model, config.benchmark.load(), "target_model")
    model, tokenizer = load_pretrained(source, "cpu")
    return model, tokenizer, PromptTemplate.of(tokenizer)


@pytest.fixture(scope="module")
def modules(stacked: tuple[Execution, RequestSequence]) -> tuple[EditedModel, dict[str, EditedModel]]:
    """The base model without caches, and each request's module."""
    execution, sequence = stacked
    adapter = sequence.config.adapter
    assert isinstance(adapter, GrunConfig)
    model, _, _ = _load(sequence.config)
    folder = Path(str(execution.folder)) / "modules"
    loaded = {r.name: adapter.load(model, folder / sequence.module_key(r)) for r in sequence.requests()}
    return adapter.attach(model, 0), loaded


@pytest.mark.parametrize("variant", [SUM, TOP, SOFT, SCALED], ids=["sum", "top_1", "soft", "scaled"])
def test_what_is_reused_is_what_would_be_measured(
    stacked: tuple[Execution, RequestSequence],
    modules: tuple[EditedModel, dict[str, EditedModel]],
    variant: Variant,
) -> None:
    """The last state, every prompt anew through pyvene: the same answers, likelihoods and gates."""
    execution, sequence = stacked
    base, loaded = modules
    assert variant.combination is not None
    assert variant.gate_threshold is not None
    config, benchmark = sequence.config, sequence.config.benchmark.load()
    adapted = combine(base, loaded, variant.combination, variant.gate_threshold).on_plain_path()
    _, _, template = _load(config)
    asking = Asking(adapted=adapted, template=template, config=config.evaluation)
    rows = evaluate(asking, benchmark.evaluation)
    key = sequence.state_key(sequence.requests(), variant)
    stored = store.read_items(execution.folder, key)
    assert stored is not None
    assert len(stored) == len(rows) == sum(map(len, benchmark.evaluation.values()))
    for row, known in zip(rows, stored, strict=True):
        assert (row["split"], row["item_index"]) == (known["split"], known["item_index"])
        assert row["generation"] == known["generation"]
        assert known["answer_nll"] == pytest.approx(row["answer_nll"], rel=1e-3, abs=1e-3)
        assert known["gate"] == pytest.approx(row["gate"], rel=1e-3, abs=1e-3)


def test_a_request_taken_back_is_answered_again(
    stacked: tuple[Execution, RequestSequence], modules: tuple[EditedModel, dict[str, EditedModel]]
) -> None:
    """Without the second module: its questions are answered as before, the others' are not, and every bit is as if it
    had never been."""
    _, sequence = stacked
    base, loaded = modules
    _, _, template = _load(sequence.config)
    requests = sequence.requests()[:3]
    prompts = {r.name: [template.prompt_ids(item.question) for item in r.items] for r in requests}
    untouched = PlainModel(base.model)

    def answers(adapted: Adapted, name: str) -> list[list[int]]:
        return adapted.generate(prompts[name], 40).answers

    whole = combine(base, {r.name: loaded[r.name] for r in requests}, "top_1", 0.9)
    without = combine(base, {r.name: loaded[r.name] for r in requests if r.name != "002"}, "top_1", 0.9)
    never = combine(base, {"001": loaded["001"], "003": loaded["003"]}, "top_1", 0.9)
    own = answers(untouched, "002")
    assert sum(a != b for a, b in zip(answers(whole, "002"), own, strict=True)) >= 8, "forgotten with its module on"
    assert sum(a == b for a, b in zip(answers(without, "002"), own, strict=True)) >= 8, "answered again without it"
    assert answers(without, "001") == answers(never, "001") != answers(untouched, "001")
    for name in prompts:
        assert torch.equal(_logits(without, prompts[name][0]), _logits(never, prompts[name][0]))


@torch.no_grad()
def _logits(adapted: EditedModel, prompt: tuple[int, ...]) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    outputs = adapted._plain()(inputs, adapted.editing([prompt], torch.tensor([len(prompt) - 1])))
    return outputs.logits


def test_decoding_costs_nothing(
    modules: tuple[EditedModel, dict[str, EditedModel]], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stacked edit runs once a layer and answer, at the last prompt token, however long the answer is."""
    base, loaded = modules
    _, _, template = _load(config)
    adapted = combine(base, loaded, "sum", 0.0)
    calls: list[int] = []
    for edit in adapted.edits.values():
        run = edit.edited
        monkeypatch.setattr(edit, "edited", lambda *args, _run=run: calls.append(1) or _run(*args))
    adapted.generate([template.prompt_ids("Where was Birgit Karlsen born?")], 40)
    assert len(calls) == len(adapted.layers)
    edited, bare = prefill_seconds(adapted, [template.prompt_ids("Who?")] * 4)
    assert bare > 0
    assert edited > 0


def test_nothing_is_done_twice(stacked: tuple[Execution, RequestSequence]) -> None:
    """The same call changes no file; with one state and one module gone it makes just these again, as they were."""
    execution, sequence = stacked
    folder = Path(str(execution.folder))
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    run_sequence(sequence, execution, lambda line: None)
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    requests = sequence.requests()
    state = folder / "requests" / f"{sequence.state_key(requests[:2], TOP)}.parquet"
    module = folder / "modules" / sequence.module_key(requests[1])
    rows, weights = read_requests(folder, state.stem), (module / "edits.safetensors").read_bytes()
    state.unlink()
    (module / TRAINING).unlink()
    lines: list[str] = []
    run_sequence(sequence, execution, lines.append)
    assert len(lines) == 1
    assert "request 2 of 5" in lines[0]
    after = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    changed = {file for file in before if before[file] != after[file]}
    assert changed <= {state, *module.iterdir(), folder / "losses" / f"{module.name}.parquet"}
    assert set(store.scan_losses(folder)["train_key"]) == {sequence.module_key(request) for request in requests}
    assert (module / "edits.safetensors").read_bytes() == weights
    again = read_requests(folder, state.stem)
    assert [row["forget_rouge_l_recall"] for row in again] == [row["forget_rouge_l_recall"] for row in rows]


def test_modules_share_one_prefix_cache(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first module's training builds what all others read."""
    models = cache_dir() / "models"
    monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(models)
    sequence, execution = _sequence(config, SUM), Execution(results=tmp_path / "r")
    seen = []
    for place in range(3):
        train_modules(sequence, execution, lambda line: None, places=[place])
        seen.append({folder.name for folder in (tmp_path / "cache" / "prefix").iterdir() if folder.is_dir()})
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 2, "what is to be forgotten, and what is to be kept"


@pytest.mark.parametrize("adapter", ["lora", "full", "reft"])
def test_a_chain_goes_on(config: RunConfig, tmp_path: Path, adapter: str) -> None:
    """Cut off after its second state, the same call goes on from those weights to what one call gives."""
    rate = {"lora": 2e-3, "full": 1e-3, "reft": 2e-2}[adapter]
    changed = {"adapter": adapter, "adapter.learning_rate": rate, "training.num_epochs": 4, "forget_loss": "npo"}
    changed["evaluation.max_items_per_split"] = 4
    if adapter == "lora":
        changed["adapter.dropout"] = 0.0
    if adapter == "full":  # each state is attacked, and the next goes on from what it was before
        changed |= {"evaluation.robustness.relearn_items": 2, "evaluation.robustness.relearn_steps": 2}
    chained = _sequence(run_config(overlay(config.to_dict(), changed)), CHAIN)
    executions = [Execution(results=tmp_path / name) for name in ("whole", "cut")]
    run_sequence(chained, executions[0], lambda line: None)
    said: list[str] = []

    def stop_after_two(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sequence(chained, executions[1], stop_after_two)
    kept = [folder for folder in (tmp_path / "cut" / "modules").iterdir() if folder.is_dir()]
    assert len(kept) == 1, "only the last weights are kept"
    run_sequence(chained, executions[1], said.append)
    assert [line.split(": ")[1].split(",")[0] for line in said] == [f"request {k} of 3" for k in (1, 2, 3)]
    whole, cut = (_states(execution, chained, CHAIN) for execution in executions)
    assert [len(state) for state in whole] == [3, 3, 3]
    assert whole[0][0]["open_shares"] is None
    tuned = Execution(results=tmp_path / "tuned")
    run_sequence(replace(chained, only_after=(2,)), tuned, lambda line: None)
    assert [len(state) for state in _states(tuned, chained, CHAIN)] == [0, 3, 0]
    assert _forgetting(_states(tuned, chained, CHAIN))[1] == pytest.approx(_forgetting(whole)[1], abs=1e-6)
    run_sequence(replace(chained, only_after=(1, 3)), tuned, said.append)
    assert [line.split(": ")[1].split(",")[0] for line in said[3:]] == ["request 1 of 3", "request 3 of 3"]
    for one, other in zip(_forgetting(whole), _forgetting(_states(tuned, chained, CHAIN)), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    for one, other in zip(_forgetting(whole), _forgetting(cut), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert whole[2][0]["forget_rouge_l_recall"] < 0.9


@pytest.mark.parametrize("adapter", ["grun", "lora"])
def test_how_it_is_run_is_heeded(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """Three passes a step are three parts in each step of the plan; LoRA keeps no activations between layers' ends."""
    passes: list[set[int]] = []
    checkpointed: list[bool] = []

    def recorded(adapted: Any, plan: Any, *others: Any, **named: Any) -> Any:
        passes.append({len(parts) for parts in plan.steps})
        checkpointed.append(isinstance(adapted, PlainModel) and adapted.model.is_gradient_checkpointing)
        return unlearn(adapted, plan, *others, **named)

    monkeypatch.setattr(training, "unlearn", recorded)
    quick = {"adapter": adapter, "training.num_epochs": 1, "evaluation.max_items_per_split": 2}
    sequence = _sequence(run_config(overlay(config.to_dict(), quick)), CHAIN if adapter == "lora" else SUM)
    execution = Execution(results=tmp_path, accumulation_steps=3, gradient_checkpointing=True)
    run_sequence(replace(sequence, num_requests=1), execution, lambda line: None)
    assert passes == [{3}]
    assert checkpointed == [adapter == "lora"]


@pytest.mark.parametrize("adapter", ["grun", "lora"])
def test_a_training_cut_off_goes_on(config: RunConfig, tmp_path: Path, checkpoint_always: None, adapter: str) -> None:
    """Ten items are one step an epoch: cut off in step 4 of 6, the same call goes on with it, to the same weights."""
    quick = {"adapter": adapter, "training.num_epochs": 6, "evaluation.max_items_per_split": 2}
    sequence = _sequence(run_config(overlay(config.to_dict(), quick)), CHAIN if adapter == "lora" else SUM)
    sequence = replace(sequence, num_requests=1)

    def steps(folder: Path, stop_at: int | None = None) -> list[int]:
        done: list[int] = []

        def report(phase: str, step: int, total: int) -> None:
            if phase.startswith("unlearn, loss"):
                done.append(step)
                if step == stop_at:
                    raise KeyboardInterrupt

        run_sequence(sequence, Execution(results=folder), lambda line: None, report)
        return done

    with pytest.raises(KeyboardInterrupt):
        steps(tmp_path / "cut", stop_at=4)
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    assert steps(tmp_path / "cut") == [4, 5, 6]
    assert steps(tmp_path / "whole") == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())
    weights = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "modules").rglob("*.safetensors")}
        for name in ("cut", "whole")
    ]
    assert weights[0] == weights[1] != {}


def test_the_command(
    config: RunConfig,
    stacked: tuple[Execution, RequestSequence],
    ray_address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two methods on Ray, GRUN tuned; a table, a page, and a deployment that transformers can load."""
    folder = tmp_path / "r"
    store.create(folder)
    for table in ("runs", "items"):
        for file in (Path(str(stacked[0].folder)) / table).glob("*.parquet"):
            (folder / table / file.name).write_bytes(file.read_bytes())
    rate = {"type": "float", "low": 0.015, "high": 0.025}
    tuned = {"search_space": {"adapter.learning_rate": rate}, "num_trials": 2, "num_tuning_requests": 1}
    lora = overlay(config.to_dict(), {"adapter": "lora", "adapter.learning_rate": 1e-3, "training.num_epochs": 2})
    write_yaml(tmp_path / "grun.yaml", {"study": "grun", "base": config.to_dict(), "num_requests": 2, **tuned})
    write_yaml(tmp_path / "lora.yaml", {"study": "lora", "base": lora, "num_requests": 2})
    main(["sequential", str(tmp_path / "grun.yaml"), str(tmp_path / "lora.yaml"), "--results", str(folder)])
    printed = capsys.readouterr().out
    assert "grun: 2 configurations, 1 requests each" in printed
    assert "After the last request" in printed
    rows = scan_requests(folder)
    assert rows.filter(study="lora")["request_index"].unique().sort().to_list() == [1, 2]
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert '"triangle":[[' in page
    assert (folder / "requests.png").read_bytes().startswith(b"\x89PNG")
    assert "<script" in page
    heading, _, *states = (folder / "requests.md").read_text().splitlines()
    assert "not asked for yet" in heading
    assert [line.split(" | ")[1] for line in states[:2]] == ["target_model", "retain_model"]
    first = rows.filter(study="lora", request_index=1).sort("evaluated_index")["forget_rouge_l_recall"].to_list()
    shown = [line.split(" | ")[4:7] for line in states if line.startswith("| lora |")]
    assert shown[0] == ["1", f"{first[0]:.3f}", f"{first[1]:.3f}"]
    assert shown[1][0] == "2"
    deployment = tmp_path / "deployment"
    main(["export", str(folder), "--study", "grun", "--output", str(deployment), "--without", "002"])
    assert "the modules of requests 001" in " ".join(capsys.readouterr().out.split())  # however the path wraps it
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(deployment)
    requests = requests_of(config.benchmark.load(), 2, ())
    model = load(deployment)
    forgotten, known = (model.generate([item.question for item in r.items], 40) for r in requests)
    answers = [[item.answer for item in request.items] for request in requests]
    assert sum(a == b for a, b in zip(forgotten, answers[0], strict=True)) <= 3
    assert sum(a == b for a, b in zip(known, answers[1], strict=True)) >= 7
    with pytest.raises(SystemExit) as error:
        main(["export", str(folder), "--study", "lora", "--output", str(deployment)])
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.1, 0.50), (0.3, 0.88), (0.2, 0.86), (0.2, 0.89)], 3),  # of those that keep 95 % of 0.9; a tie
        ([(0.1, 0.50), (0.3, 0.80), (0.2, 0.70), (0.2, 0.75)], 1),  # none keeps 95 %
    ],
)
def test_the_best_keeps_its_utility(
    config: RunConfig, tmp_path: Path, scores: Sequence[tuple[float, float]], best: int
) -> None:
    """(forget ROUGE-L, utility) of sum and top_1 at two thresholds after the tuning requests."""
    store.create(tmp_path)
    target = prerequisite(config, "target_model")
    store.write_run(tmp_path, {"run_key": target.run_key, "status": "ok", "model_utility": 0.9})
    study = SequentialConfig(study="s", combinations=("sum", "top_1"), gate_thresholds=(0.9,), num_tuning_requests=1)
    sequence = study.sequence(config, tuning=True)
    for variant, (rouge_l_recall, utility) in zip(sequence.variants, scores, strict=True):
        row = {"requested_rouge_l_recall": rouge_l_recall, "model_utility": utility, "evaluated_index": 1}
        key = sequence.state_key(sequence.requests()[:1], variant)
        write_requests(tmp_path, key, [{"run_key": key, **row}])
    chosen = _best(study, [config], Execution(results=tmp_path))
    assert chosen.variants[0] == sequence.variants[best]
    assert chosen.only_after == ()
    assert set(chosen.variants) == set(sequence.variants)


@pytest.mark.parametrize(
    ("given", "measured"), [("[]", ()), ("[1]", (1, 3)), ("[9, 3, 2, 2]", (2, 3))], ids=["each", "and the last", "once"]
)
def test_which_states_are_measured(config: RunConfig, tmp_path: Path, given: str, measured: tuple[int, ...]) -> None:
    """None, and each is; else those named that there are, and the last."""
    write_yaml(tmp_path / "s.yaml", {"study": "s", "base": config.to_dict(), "num_requests": 3})
    with (tmp_path / "s.yaml").open("a") as file:
        file.write(f"measured_after: {given}\n")
    study = read_sequential(str(tmp_path / "s.yaml"), {}, None)
    assert study.sequence(config).only_after == measured


@pytest.mark.parametrize(
    ("text", "words", "complaint"),
    [
        ("measured_after: [0]", [], "measured_after"),
        ("num_requests: 9", [], "num_requests: 9, but authors forget20 has 4"),
        ("extra_requests: [unknown]", ["--benchmark.num-holdout-authors", "0"], "has no holdout set here"),
        ("extra_requests: [again]", [], "extra_requests"),
        ("combinations: [max]", [], "combinations"),
        ("base: {adapter: none}", [], "adapter: none trains nothing"),
        ("base: {adapter: {name: grun, rank: 0}}", [], "adapter.rank"),
        ("num_trial: 3", [], "num_trial: unknown key; did you mean num_trials?"),
        ("search_space: {adapter.rank: {type: int, low: 9, high: 2}}", [], "low 9 is above high 2"),
        ("{}", ["--num-workers", "2"], "--num-workers"),
        ("{}", ["--shard"], "--shard: splits weights that are trained, and grun trains none"),
        ("base: {adapter: lora}", ["--shard"], "--shard"),
        ("base: {evaluation: {after: 4_bit}}", [], "evaluation.after: a sequence is measured as it is"),
        ("base: {benchmark: muse}", ["--robustness"], "evaluation.robustness: muse asks nothing of its forget set"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], complaint: str
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("study: s\n" + ("" if text == "{}" else text + "\n"))
    with pytest.raises(SystemExit) as error:
        main(["sequential", str(file), "--results", str(tmp_path / "r"), *words])
    assert error.value.code == 2
    printed = capsys.readouterr().err
    assert complaint in printed
    assert len(printed.splitlines()) == 1


def test_a_benchmark_of_ones_own(questions_dir: Path, small_config: RunConfig) -> None:
    """Requests by the lines' own names, in the order they come; without wrong answers there is no truth ratio."""
    benchmark = run_config(
        overlay(small_config.to_dict(), {"benchmark": "questions", "benchmark.data_dir": str(questions_dir)})
    ).benchmark.load()
    requests = requests_of(benchmark, None, ("repeat",))
    assert [(request.name, len(request.items)) for request in requests] == [("a", 2), ("b", 3), ("repeat", 2)]
    assert requests[0].digest != requests[2].digest
    assert replace(requests[2], seed_offset=0).digest == requests[0].digest
    named = replace(benchmark, requests={"repeat": benchmark.requests["a"]})
    with pytest.raises(UserError, match="repeat stands for a hard case; give that request another name"):
        requests_of(named, None, ())
