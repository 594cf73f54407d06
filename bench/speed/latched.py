"""What edits that go on to the answer's end take, and a hundred of them behind one router: steps, tokens, first tokens.

Shapes: X prompts, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from bench.sequential.scores import prefill_seconds
from bench.speed.contenders import best_ratio
from bench.speed.stopwatch import DEPTHS, LOSSES, Record, Stopwatch, timed
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.data import Example
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted, PlainModel
from grun.sequential import combine
from pyvene_custom.router import LEAST_OPEN, RouterGate

NUM_PROMPTS = 8
"""Forget prompts that are answered, one at a time."""
NUM_TOKENS = 32
"""Tokens of an answer at most."""
NUM_REQUESTS, QUESTIONS, KEPT = 100, 20, 1000
"""Requests behind the router, prompts of each, and prompts that all of them keep."""
BATCHES = (32, 1)
"""Prompts whose first tokens are said at once."""
PREFILL_REPEATS = 21


def latched(watch: Stopwatch) -> Record:
    """Training steps, tokens of answers, and a hundred requests' gates."""
    return {"steps": _steps(watch), "token": _token(watch), "requests": _requests(watch)}


def _steps(watch: Stopwatch) -> list[Record]:
    """Seconds of a training step through bare hooks and in the engine, and what the engine could reach at best."""
    layers, rows = watch.layers[DEPTHS], []
    for loss in LOSSES:
        contenders = {name: watch.contender(name, loss, layers, edits="answer") for name in ("hooks", "engine")}
        turns = {name: partial(watch.step_seconds, adapted, loss) for name, adapted in contenders.items()}
        seconds = watch.rounds(f"steps with {loss}, edits to the answer's end", turns)
        best = best_ratio(
            watch.model, watch.forget, watch.retain, first_layer=min(layers), reads_reference=loss == "npo"
        )
        rows.append({"forget_loss": loss, "indices": list(layers), **seconds, "best_ratio": best})
    return rows


def _token(watch: Stopwatch) -> Record:
    """Seconds a token after an answer's first: of the model as it is, and with all gates of new edits open."""
    edited = _config(watch).attach(watch.model, watch.config.seed)
    edited.train(False)
    set_gate_threshold(edited, 0.0)
    contenders: dict[str, Adapted] = {"model": PlainModel(watch.model), "edited": edited}
    prompts = [example.prompt_ids for example in watch.forget[:NUM_PROMPTS]]

    def seconds(adapted: Adapted) -> list[float]:
        each = []
        for prompt in prompts:
            first_s, _ = timed(partial(adapted.generate, [prompt], max_new_tokens=1))
            all_s, said = timed(partial(adapted.generate, [prompt], max_new_tokens=NUM_TOKENS))
            each += [(all_s - first_s) / (len(said.answers[0]) - 1)] if len(said.answers[0]) > 1 else []
        return each

    return watch.rounds("tokens", {name: partial(seconds, adapted) for name, adapted in contenders.items()})


def _requests(watch: Stopwatch) -> Record:
    """A hundred requests of new edits behind one router, fitted to hidden states drawn around those of the prompts:
    seconds of its fit, and until a batch of prompts has its first tokens with all gates shut, each prompt's own open,
    and without any of it."""
    config, width = _config(watch), watch.model.config.get_text_config().hidden_size
    generator = torch.Generator().manual_seed(watch.config.seed)
    kept_XD = torch.randn(KEPT, width, generator=generator)
    modules = {str(place): config.attach(watch.model, place) for place in range(NUM_REQUESTS)}
    is_forget_X = torch.arange(QUESTIONS + KEPT) < QUESTIONS
    known = list(dict.fromkeys(example.prompt_ids for example in (*watch.forget, *watch.retain)))[:NUM_REQUESTS]
    asked = PlainModel(watch.model).answer_output(
        [Example(prompt_ids=prompt, answer_ids=(0,)) for prompt in known], 1.0
    )
    assert asked.hidden_ND is not None, "its layer was asked for"
    for place, module in enumerate(modules.values()):
        around_XD = 0.01 * torch.randn(QUESTIONS, width, generator=generator)
        around_XD[0] = 0.0
        hidden_XD = torch.cat([asked.hidden_ND[place % len(known)].float().cpu() + around_XD, kept_XD])
        for edit in module.edits.values():
            assert isinstance(edit.gate, RouterGate)
            edit.gate.fit(hidden_XD, is_forget_X)
    base = config.attach(watch.model, watch.config.seed)

    def stack() -> EditedModel:
        return combine(base, modules, "top_1", config.gate_threshold)

    fit = watch.rounds("fitting a router", {"fit": lambda: [timed(stack)[0]]})["fit"]
    stacked = stack()
    stacked.train(False)
    rows = [
        {"prompts": count, "gates": gates, **_first_tokens(stacked, threshold, (known * count)[:count])}
        for gates, threshold in (("shut", 1.0), ("open", 0.0))
        for count in BATCHES
    ]
    fitted_to = {"known": NUM_REQUESTS * QUESTIONS + KEPT, "around_prompts": True}
    return {"requests": NUM_REQUESTS, **fitted_to, "fit": fit, "prefill": rows}


def _first_tokens(stacked: EditedModel, threshold: float, prompts: Sequence[tuple[int, ...]]) -> Record:
    """threshold: that no gate reaches, or every gate."""
    set_gate_threshold(stacked, threshold)
    logit_BK = stacked.prompt_gates(prompts)
    assert logit_BK is not None, "there are gates"
    assert (torch.sigmoid(logit_BK) > LEAST_OPEN / 2).any(dim=1).all(), "each prompt has one of its own"
    edits = {layer: stacked.edits[str(layer)] for layer in stacked.layers}
    unasked = EditedModel(stacked.model, edits, stacked.where, stacked.gate_layer)
    edited_s, model_s = prefill_seconds(unasked, prompts, PREFILL_REPEATS)
    return {"edited": edited_s, "model": model_s}


def _config(watch: Stopwatch) -> GrunConfig:
    """GRUN behind a router, with edits to the answer's end."""
    adapter = watch.changed({"adapter.edits": "answer", "adapter.gate_function": "router"}).adapter
    assert isinstance(adapter, GrunConfig)
    return replace(adapter, layers=watch.layers[DEPTHS])
