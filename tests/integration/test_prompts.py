"""Prompts in whole runs: turns that do not end in EOS, settings that travel with a module, questions too long."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bench.cli.main import main
from bench.config import overlay, run_config
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.errors import UserError
from grun.model.forward import PlainModel, set_answer_ends
from grun.prompts.config import PromptConfig
from grun.prompts.template import PromptTemplate
from grun.training.teach import FineTuningConfig, Lessons, fine_tune
from grun.unlearned import load

PAIRS = [("Who sings?", "Ada does."), ("Who swims?", "Bo does."), ("Who digs?", "Cy does."), ("Who cooks?", "Di does.")]
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-2 of 256 tokens' context that knows PAIRS by heart, in a chat whose turns end in <|end|>, not in EOS."""
    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]
    bpe.train_from_iterator([text for pair in PAIRS for text in pair], vocab_size=300, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=special[0], pad_token=special[0])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(
            GPT2Config(vocab_size=300, n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        )
    template = PromptTemplate.of(tokenizer)
    set_answer_ends(model, template)
    recipe = FineTuningConfig(num_epochs=150, batch_size=4, learning_rate=1e-2)
    fine_tune(PlainModel(model), Lessons(taught=[template.example(*pair) for pair in PAIRS]), recipe)
    folder = tmp_path_factory.mktemp("chat")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """PAIRS as a folder of questions: two to forget, two to keep."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for part, pairs in (("forget", PAIRS[:2]), ("retain", PAIRS[2:])):
        rows = [
            {
                "question": question,
                "answer": answer,
                "paraphrased_answer": answer,
                "perturbed_answers": ["None."],
            }
            for question, answer in pairs
        ]
        (folder / f"{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _config(model: str, data: Path, **changes: Any) -> Any:
    settings = {
        "benchmark": "questions",
        "benchmark.data_dir": str(data),
        "model": model,
        "model.fine_tuning.num_epochs": 0,
        "adapter": "none",
        "evaluation.max_new_tokens": 20,
    }
    return run_config(overlay({}, settings | changes))


def test_a_chat_model_that_ends_its_turns_otherwise_knows_what_it_knows(
    chat_model: str, questions: Path, tmp_path: Path
) -> None:
    """It answers word for word and stops with <|end|>: probability 1, the whole answer memorised.

    Likelihoods alone say so; decoding every answer says the same. With EOS as the label's last token, which it never
    says, it would seem to know little.
    """
    config = _config(chat_model, questions)
    (row,) = run(config, Execution(results=tmp_path / "quick"))
    assert row["forget_probability"] > 0.95
    assert row["forget_rouge_l_recall"] == row["retain_rouge_l_recall"] == row["forget_extraction_strength"] == 1.0
    run(config, Execution(results=tmp_path / "decoded", engine="plain"))
    quick, decoded = (store.read_items(tmp_path / name, row["run_key"]) for name in ("quick", "decoded"))
    assert quick is not None
    assert decoded is not None
    assert [item["generation"] for item in quick] == [answer for _, answer in PAIRS]
    assert [item["generation"] for item in decoded] == [answer for _, answer in PAIRS]
    eos = _config(chat_model, questions, **{"model.prompt.turn_end": "<|endoftext|>"})
    assert run(eos, Execution(results=tmp_path / "quick"))[0]["forget_probability"] < 0.5


def test_a_module_is_asked_with_the_prompt_it_was_trained_with(
    chat_model: str, questions: Path, tmp_path: Path
) -> None:
    prompt = {"system": "Be brief.", "examples": [["Who?", "Me."]], "turn_end": "<|endoftext|>"}
    changes = {"model.prompt": prompt, "adapter": "grun", "adapter.layers": [1], "training.num_epochs": 1}
    config = _config(chat_model, questions, **changes)
    run(config, Execution(results=tmp_path / "results"))
    model = load(tmp_path / "results" / "modules" / config.train_key)
    expected = PromptConfig(system="Be brief.", examples=(("Who?", "Me."),), turn_end="<|endoftext|>")
    assert model.template.config == config.model.prompt == expected


def test_prepare_shows_an_example_as_the_model_sees_it(
    chat_model: str, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = "Be as brief as you can, in words that [bold]everybody[/bold] has known since school. " * 2 + "Thanks."
    command = ["prepare", "--benchmark", "questions", "--benchmark.data-dir", str(questions), "--model", chat_model]
    command += ["--model.fine-tuning.num-epochs", "0", "--model.prompt.system", system, "--results", str(tmp_path)]
    main([*command, "--evaluation.max-new-tokens", "9", "--model.prompt.style", "chat"])
    shown = f"<|system|>{system}<|end|><|user|>Who sings?<|end|><|assistant|>Ada does.<|end|>"
    assert capsys.readouterr().out.endswith(f"as the model is asked it and answers:\n{shown}\n")


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_a_question_longer_than_the_context_is_one_line_before_anything_is_trained(
    num_epochs: int, chat_model: str, questions: Path, tmp_path: Path
) -> None:
    """Of 256 tokens. By option the question loses its beginning instead, and all goes on."""
    long = {
        "question": "Who sings? " * 200,
        "answer": "Ada does.",
        "paraphrased_answer": "a",
        "perturbed_answers": ["b"],
    }
    with (questions / "retain.json").open("a") as file:
        file.write(json.dumps(long) + "\n")
    changes = {"model.fine_tuning.num_epochs": num_epochs, "adapter": "grun", "adapter.layers": [1]}
    config = _config(chat_model, questions, **changes, **{"training.num_epochs": 1})
    trained: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        trained.append(phase)

    with pytest.raises(UserError, match=r"^benchmark: item 2 of retain takes \d+ tokens, and the model reads 256; set"):
        run(config, Execution(results=tmp_path / "results"), progress=progress)
    assert trained == []
    cut = _config(chat_model, questions, **changes, **{"training.num_epochs": 1, "model.prompt.max_tokens": 40})
    (row, *_) = run(cut, Execution(results=tmp_path / "results"))
    assert row["status"] == "ok"
