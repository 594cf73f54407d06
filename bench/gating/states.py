"""Hidden states at the ends of prompts, each read once by the untouched model and kept in the results folder."""

import time
from collections.abc import Iterable, Mapping, Sequence

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.content import digest
from bench.results.storage import Location
from bench.runs.subject import Subject
from grun.data import length_sorted_batches
from grun.engine.prefix_cache import weights_hash
from grun.errors import UserError
from grun.lm.prompted import beginning, read_from
from grun.model.forward import pass_tokens

Prompt = tuple[int, ...]
FOLDER = "states"
BATCH = 32
WRITTEN_EVERY_SECONDS = 20.0
"""What a process that is killed may lose."""


def hidden_states(
    subject: Subject, layers: Sequence[int], prompts: Iterable[Prompt], *, means: bool = False
) -> dict[int, Mapping[Prompt, Tensor]]:
    """Of each layer its output at each prompt's last token, or its mean over the prompt, [D], float32 on the CPU.

    A layer and model has one file, named by the model's weights, in which a prompt has the name of its tokens: what an
    earlier call read is not read again. Raises UserError where such a file is damaged.
    """
    names = {prompt: digest(prompt) for prompt in prompts}
    weights = weights_hash(subject.model)
    folder = subject.execution.folder / FOLDER
    (ends, averaged), kind = ((), layers) if means else (layers, ()), ["mean"] if means else []
    files = {layer: folder / f"{digest([weights, layer, *kind])}.safetensors" for layer in layers}
    known = {layer: _read(file) for layer, file in files.items()}
    missing = [prompt for prompt, name in names.items() if any(name not in known[layer] for layer in layers)]
    written, done = time.perf_counter(), 0
    for rows in length_sorted_batches([len(prompt) for prompt in missing], BATCH):
        batch = [missing[row] for row in rows]
        begun = None if means else beginning(subject.model, batch, pass_tokens(subject.device))
        read = read_from(begun, subject.model, batch, ends, means=averaged, head=False)
        for layer, hidden_BD in zip(layers, read.hidden_BD, strict=True):
            own = (row_D.float().cpu().clone() for row_D in hidden_BD)
            known[layer] |= zip((names[prompt] for prompt in batch), own, strict=True)
        done += len(batch)
        if done == len(missing) or time.perf_counter() - written > WRITTEN_EVERY_SECONDS:
            for layer, file in files.items():
                file.write(save(known[layer]))
            written = time.perf_counter()
        subject.progress("hidden states of prompts", done, len(missing))
    return {layer: {prompt: known[layer][name] for prompt, name in names.items()} for layer in layers}


def _read(file: Location) -> dict[str, Tensor]:
    try:
        return load(file.read()) if file.exists() else {}
    except SafetensorError as error:
        raise UserError(str(file), f"is damaged ({error}); delete it, and run this again") from error
