"""A frozen causal LM with ReFT or GRUN edits, on the last prompt token or from there on: forward and generate.

Two paths, equal to float rounding: the plain one runs the whole model through pyvene; the engine runs only what the
edits can change (`grun.engine.later_layers`), for the examples and prompts that `announce` has been told of. What it
has not been told of is read in one pass, edited on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from grun.data import Batch, Example, collate, length_sorted_batches
from grun.engine import later_layers
from grun.engine.prefix_builder import Builder, check_same_nll
from grun.engine.prefix_cache import PrefixCache, PrefixCaching, weights_hash
from grun.engine.prefix_layout import CannotServe, Layout
from grun.errors import UserError
from grun.lm.layers import Layer
from grun.lm.patching import decoder_layers
from grun.lm.prompted import Prompted, beginning, end_columns, read_from
from grun.lm.reading import eos_ids, hidden_layer_index, model_inputs, prompt_inputs
from grun.model.changed import changed_layers
from grun.model.forward import AnswerOutput, CausalLM, Generated, Tally, in_groups, pass_tokens, read_off
from grun.model.packed import can_read_packed, pack
from pyvene_custom.editing import Editing, Edits

if TYPE_CHECKING:
    from pyvene_custom.gated_model import GatedModel

GATE_BATCH = 64


class EditedModel:
    """A frozen model and its edits, one a layer."""

    def __init__(self, model: CausalLM, edits: Mapping[int, nn.Module], where: Edits, gate_layer: int | None) -> None:
        """gate_layer: whose output the gates read, in a pass of the untouched model; None: of what they edit."""
        self.model = model
        self.where = where
        self.gate_layer = gate_layer
        self._gate_hiddens: dict[tuple[int, ...], Tensor] | None = {}
        """What the gates read of each prompt so far; None: nothing is kept."""
        self._is_plain = False
        self.edits = nn.ModuleDict({str(layer): edits[layer] for layer in sorted(edits)}).to(model.device)
        self.layers = tuple(sorted(edits))
        self._caching: PrefixCaching | None = None
        self._caches: list[PrefixCache] = []
        self._weights = cache(partial(weights_hash, model))
        self._gated: GatedModel | None = None

    @property
    def device(self) -> torch.device:
        """See `grun.model.forward.Adapted`."""
        return self.model.device

    @property
    def engine(self) -> str:
        """`prefix_cache` or `plain`: how it has been run."""
        return "prefix_cache" if self._caches else "plain"

    def use_prefix_caching(self, caching: PrefixCaching) -> None:
        """Let `announce` build and open prefix caches; without this call there are none."""
        self._caching = caching

    def announce(self, examples: Sequence[Example], *, generate: bool, progress: Tally) -> None:
        """See `Adapted`. Whatever the engine cannot serve takes the plain path, and one line says so."""
        if self._caching is None or all(self._home(example) for example in examples):
            return
        try:
            builder = Builder(self.model, Layout(examples, generate), self.layers[0])
            cache = self._caching.cache_of(builder, self._weights, progress)
            self._check(cache)
        except (CannotServe, AttributeError, IndexError, NotImplementedError, TypeError) as error:
            why = error if isinstance(error, CannotServe) else f"{type(self.model).__name__} does not fit ({error})"
            self._caching.log(f"prefix cache not used: {why}")
            self._caching = None
            self._caches = []
        else:
            self._caches.append(cache)

    def afresh(self, model: CausalLM = None) -> Self:
        """The same edits and nothing of what was read: for weights that change. model: another one to put them on."""
        other = copy.copy(self)
        other.model = self.model if model is None else model
        other._gate_hiddens, other._caching, other._caches, other._gated = None, None, [], None
        if self._is_plain or not can_read_packed(other.model):
            other.take_hold()
        return other

    def on_plain_path(self) -> Self:
        """The same all through pyvene, as a check."""
        plain = self.afresh()
        plain._is_plain = True
        plain.take_hold()
        return plain

    def take_hold(self) -> None:
        """pyvene freezes a model when it takes hold of it: now, and not after its weights were freed."""
        self._plain()

    def with_edits(self, edits: Mapping[int, nn.Module]) -> Self:
        """The same model and prefix caches under other edits on the same layers."""
        assert tuple(sorted(edits)) == self.layers, "what is cached ends at the first edited layer"
        other = copy.copy(self)
        other.edits = nn.ModuleDict({str(layer): edits[layer] for layer in self.layers}).to(self.model.device)
        other._gated = None
        return other

    def answer_output(self, examples: Sequence[Example], hidden_layer: Layer | None = None) -> AnswerOutput:
        """See `grun.model.forward.Adapted`."""
        at = None if hidden_layer is None else hidden_layer_index(self.model, hidden_layer)
        if at is not None and at < self.layers[0]:
            raise UserError(
                "forget_loss.layer",
                f"layer {at} lies below the first edited layer, {self.layers[0]}; use that or above",
            )
        is_packed = not self._is_plain and can_read_packed(self.model)
        if self._caches and all(self._home(example) for example in examples):
            run = partial(self._engine_output, at)
            if is_packed:
                return run(examples)
            return in_groups(examples, lambda example: len(example.answer_ids), self.device, run)
        if is_packed:
            return self._packed_output(at, examples)
        return in_groups(examples, len, self.device, partial(self._plain_output, at))

    def _engine_output(self, hidden_layer: int | None, examples: Sequence[Example]) -> AnswerOutput:
        prompts = [example.prompt_ids for example in examples]
        return later_layers.answer_output(self.model, self.editing(prompts, None, hidden_layer), self._caches, examples)

    def _plain_output(self, hidden_layer: int | None, examples: Sequence[Example]) -> AnswerOutput:
        batch = collate(examples, device=self.device)
        editing = self.editing([example.prompt_ids for example in examples], batch.edited_position_B, hidden_layer)
        output = read_off(self.model, examples, batch, hidden_layer, partial(self.through_pyvene, batch, editing))
        if editing.kept_BLD is not None:  # pyvene edits what the layer gave
            output = replace(output, hidden_ND=editing.kept_BLD[batch.predicts_answer_BL])
        return replace(output, gate_logit_BK=editing.gate_logit_BK())

    def _packed_output(self, hidden_layer: int | None, examples: Sequence[Example]) -> AnswerOutput:
        packed = pack(examples, device=self.device)
        editing = self.editing([example.prompt_ids for example in examples], None, hidden_layer)
        layers = filter(editing.concerns, range(self.layers[0], len(decoder_layers(self.model))))
        with changed_layers(self.model, packed.shown_to(editing), layers):
            output = read_off(self.model, examples, packed, None, lambda: self.model(**packed.inputs()))
        hidden_ND = None if editing.kept_BLD is None else editing.kept_BLD[packed.is_token_BA]
        return replace(output, hidden_ND=hidden_ND, gate_logit_BK=editing.gate_logit_BK())

    def editing(
        self, prompts: Sequence[tuple[int, ...]], prompt_end_B: Tensor | None, kept_layer: int | None = None
    ) -> Editing:
        """A pass of these edits over some prompts; see `Editing`."""
        read = None if self.gate_layer is None else self._gate_hidden(prompts)
        return Editing(self._edits(), self.where, prompt_end_B, kept_layer, read)

    def fit(self, forget: Sequence[Example], retain: Sequence[Example]) -> None:
        """See `Adapted`."""
        gates = [edit.gate for edit in self._edits().values() if edit.gate is not None and edit.gate.is_fitted]
        if gates:
            prompts = [list(dict.fromkeys(example.prompt_ids for example in part)) for part in (forget, retain)]
            hidden_BD = self._gate_hidden([*prompts[0], *prompts[1]])
            for gate in gates:
                gate.fit(hidden_BD, torch.arange(len(hidden_BD)) < len(prompts[0]))

    def _has_read(self, prompts: Sequence[tuple[int, ...]]) -> bool:
        """Whether what late gates read of these prompts is known already."""
        return self._gate_hiddens is not None and self._gate_hiddens.keys() >= set(prompts)

    @torch.no_grad()
    def _gate_hidden(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """What all gates read of the untouched model's hidden states: [B, D], float32."""
        known = {} if self._gate_hiddens is None else self._gate_hiddens
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        ends, means = self._gates_read()
        for rows in length_sorted_batches([len(prompt) for prompt in missing], GATE_BATCH):
            batch = [missing[row] for row in rows]
            read = read_from(None, self.model, batch, ends, means=means, head=False)
            known |= zip(batch, read.hidden_BD[0].float(), strict=True)
        return torch.stack([known[prompt] for prompt in prompts])

    def _gates_read(self) -> tuple[Sequence[int], Sequence[int]]:
        """Layers that late gates read at a prompt's last token, and those whose mean over all of it they read."""
        late = [] if self.gate_layer is None else [self.gate_layer]
        return ([], late) if any(edit.reads_mean for edit in self._edits().values()) else (late, [])

    def _beginning(self, prompts: Sequence[tuple[int, ...]]) -> Prompted | None:
        """Read once for all of them; a mean is over all of a prompt."""
        return None if self._gates_read()[1] else beginning(self.model, prompts, pass_tokens(self.device))

    def through_pyvene(self, batch: Batch, editing: Editing) -> Any:
        """The whole model on a batch: its own output."""
        return self._plain()(model_inputs(batch), editing)

    @torch.no_grad()
    @parametrize.cached()  # an edit's rotation is worked out once, and not for every token
    def generate(
        self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, drafts: Sequence[Sequence[int]] = ()
    ) -> Generated:
        """See `grun.model.forward.Adapted`."""
        cache = self._cache_of(prompts)
        if cache is not None:
            editing = self.editing(prompts, None)
            read = later_layers.read_prompts(self.model, editing, cache, prompts)
            return later_layers.answers(editing, read, max_new_tokens, drafts)
        if self._is_plain:
            return self._generate_through_pyvene(prompts, max_new_tokens)
        begun = self._beginning(prompts)
        if self.gate_layer is not None and not self._has_read(prompts):
            return self._generate_behind_late_gates(begun, prompts, max_new_tokens, drafts)
        editing = self.editing(prompts, end_columns(begun, prompts, self.device))
        with changed_layers(self.model, editing, editing.layers):
            read = read_from(begun, self.model, prompts)
        return later_layers.answers(editing, read, max_new_tokens, drafts)

    def _generate_behind_late_gates(
        self,
        begun: Prompted | None,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]],
    ) -> Generated:
        """The pass that the gates read begins the answers, too: only where one opens, the prompts' last tokens go
        through the later layers once more."""
        ends, means = self._gates_read()
        read = read_from(begun, self.model, prompts, (self.layers[0], *ends), means=means, head=False)
        gate_hidden_BD = read.hidden_BD[1].float()
        gates = [edit.read(gate_hidden_BD) for edit in self._edits().values()]
        if not any(weight_BK.any() for weight_BK, _ in gates):
            logit_BK = torch.cat([logit_BK for _, logit_BK in gates], dim=1)
            return Generated(answers=read.answers(max_new_tokens, drafts), gate_logit_BK=logit_BK)
        editing = Editing(self._edits(), self.where, gate_hidden_BD=gate_hidden_BD)
        edited = later_layers.edit_ends(read, editing, self.layers[0])
        if edited is None:  # a family that keeps something else
            return self._generate_through_pyvene(prompts, max_new_tokens)
        return later_layers.answers(editing, edited, max_new_tokens, drafts)

    def _generate_through_pyvene(self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> Generated:
        """The plain path: pyvene's own decoding, which looks at no draft."""
        inputs = prompt_inputs(prompts, self.model)
        length = inputs["input_ids"].shape[1]
        ends = eos_ids(self.model)
        editing = self.editing(prompts, end_columns(None, prompts, self.device))
        sequences_BL = self._plain().generate(inputs, editing, max_new_tokens=max_new_tokens, eos_token_id=ends)
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in sequences_BL[:, length:].tolist()]
        return Generated(answers=answers, gate_logit_BK=editing.gate_logit_BK())

    @torch.no_grad()
    def prompt_gates(self, prompts: Sequence[tuple[int, ...]]) -> Tensor | None:
        """Gate logits of some prompts, [B, K], at the thresholds in force; None where the edits have no gates."""
        if self.gate_layer is not None:  # whatever the gates below say
            hidden_BD = self._gate_hidden(prompts)
            read = [edit.read(hidden_BD)[1] for edit in self._edits().values()]
            return torch.cat(read, dim=1)
        cache = self._cache_of(prompts)
        if cache is not None:
            return later_layers.gate_logits(self.model, self.editing(prompts, None), cache, prompts)
        return self.answer_output([Example(prompt_ids=prompt, answer_ids=(0,)) for prompt in prompts]).gate_logit_BK

    def trainable_parameters(self) -> list[nn.Parameter]:
        """See `grun.model.forward.Adapted`."""
        return list(self.edits.parameters())

    def train(self, mode: bool) -> None:
        """Training only concerns the edits: the frozen model stays in evaluation mode."""
        self.model.eval()
        self.edits.train(mode)

    def _edits(self) -> dict[int, Any]:
        return {layer: self.edits[str(layer)] for layer in self.layers}

    def _plain(self) -> GatedModel:
        """The same edits through pyvene; made at first use, as importing it takes seconds."""
        if self._gated is None:
            from pyvene_custom.gated_model import GatedModel

            self._gated = GatedModel(self.model, self._edits())
        return self._gated

    def _home(self, example: Example) -> PrefixCache | None:
        return next((cache for cache in self._caches if example in cache), None)

    def _cache_of(self, prompts: Sequence[tuple[int, ...]]) -> PrefixCache | None:
        return next((cache for cache in self._caches if cache.has_prompts(prompts)), None)

    @torch.no_grad()
    def _check(self, cache: PrefixCache) -> None:
        """Without edits the later layers must give the likelihoods that the model gives."""
        examples, plain = zip(*cache.checked, strict=True)
        output = later_layers.answer_output(self.model, Editing({}), [cache], examples)
        for from_cache, without in zip(output.scores.nll_B.tolist(), plain, strict=True):
            check_same_nll(self.model, from_cache, without)
