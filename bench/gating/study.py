"""Rows of `gates`: each kind of gate at each layer, for each number of requests and threshold."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial

from bench.config import RunConfig
from bench.content import by_content, digest
from bench.gating.openings import States, fitted_gates, openings
from bench.gating.sets import GateSets, gate_sets, requested
from bench.gating.states import hidden_states
from bench.models.pretrained import empty_model
from bench.progress import Progress
from bench.results import store
from bench.results.columns import Row
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from grun.errors import UserError
from grun.lm.layers import Layer, layer_index
from pyvene_custom.gate_functions import GateFunction, reads_mean

_Case = tuple[Layer, int, GateFunction]
"""Where gates read, of how many requests, of which kind."""


class GateStudy:
    """How well gates tell requests apart on the untouched model, in a results folder."""

    def __init__(self, config: RunConfig, execution: Execution, progress: Progress) -> None:
        """config: adapter, training and seed say how a gate is trained, as in a run. Raises UserError without gates."""
        adapter = config.adapter
        if not adapter.is_gated:
            raise UserError("adapter", f"{adapter.name} has no gates; use one that has, such as grun")
        self.config, self.execution, self.progress = config, execution, progress
        self._gate_layer = adapter.gate_layer
        beside: GateFunction = "linear" if adapter.gate_function == "router" else adapter.gate_function
        self.gate_functions: tuple[GateFunction, GateFunction] = ("router", beside)
        self._sets: dict[int, GateSets] = {}

    def rows(self, layers: Sequence[Layer], num_requests: Sequence[int], gate_thresholds: Sequence[float]) -> list[Row]:
        """layers: none: that of the adapter's gates, or the last one. What is in the results is not computed again.

        Raises UserError where the benchmark has fewer requests, or the model no such layer.
        """
        store.create(self.execution.folder)
        layers = layers or [1.0 if self._gate_layer is None else self._gate_layer]
        cases = [(layer, count, kind) for layer in layers for count in num_requests for kind in self.gate_functions]
        found: dict[_Case, Sequence[Row]] = {
            case: store.rows_of(self.execution.folder, "gates", self._key(*case)) for case in cases
        }
        thresholds = {
            case: {row["gate_threshold"] for row in rows} | {*gate_thresholds} for case, rows in found.items()
        }
        missing = [case for case, rows in found.items() if len(thresholds[case]) > len(rows)]
        if missing:
            for count in num_requests:
                requested(self._subject, count)
            for layer in layers:
                self._index(layer)  # said, like the above, before a model is taught for it
            states = {means: self._states(missing, means) for means in {reads_mean(kind) for _, _, kind in missing}}
            for case in missing:
                hidden = states[reads_mean(case[2])][self._index(case[0])]
                rows = self._measured(case, hidden, sorted(thresholds[case]))
                store.write_rows(self.execution.folder, "gates", self._key(*case), rows)
                found[case] = rows
        return [row for rows in found.values() for row in rows if row["gate_threshold"] in gate_thresholds]

    def _key(self, layer: Layer, num_requests: int, gate_function: GateFunction) -> str:
        return digest([by_content(self.config.to_dict()), layer, num_requests, gate_function])

    @cached_property
    def _subject(self) -> Subject:
        return Subject(config=self.config, execution=self.execution, progress=self.progress)

    def _index(self, layer: Layer) -> int:
        return layer_index(layer, self._num_layers, "--layers")

    @cached_property
    def _num_layers(self) -> int:
        """Of the model, which need not be there for that."""
        return int(empty_model(self.config.model).config.get_text_config().num_hidden_layers)

    def _of(self, num_requests: int) -> GateSets:
        if num_requests not in self._sets:
            self._sets[num_requests] = gate_sets(self._subject, num_requests)
        return self._sets[num_requests]

    def _states(self, cases: Sequence[_Case], means: bool) -> Mapping[int, States]:
        layers = sorted({self._index(layer) for layer, _, _ in cases})
        prompts = [prompt for count in {count for _, count, _ in cases} for prompt in self._of(count).all]
        return hidden_states(self._subject, layers, prompts, means=means)

    def _measured(self, case: _Case, hidden: States, gate_thresholds: Sequence[float]) -> list[Row]:
        layer, num_requests, kind = case
        config, subject, started = self.config, self._subject, time.perf_counter()
        sets, told = self._of(num_requests), partial(self.progress, f"{kind} gates of {num_requests} requests")
        gates = fitted_gates(kind, sets, hidden, config.recipe, told)
        seconds = time.perf_counter() - started
        is_taught = config.model.fine_tuning.num_epochs > 0
        taught = [*subject.benchmark.retain_set, *subject.benchmark.forget_set] if is_taught else []
        same = {
            "benchmark": config.benchmark.name,
            "model": config.model.name,
            "taught": len(taught),
            "config_json": config.to_json(),
            "gate_function": kind,
            "gate_layer": self._index(layer),
            "num_layers": self._num_layers,
            "num_requests": num_requests,
            "fit_seconds": seconds,
            **costs.machine(subject.device),
            "hub_commits": subject.commits,
            "created_at": datetime.now(UTC),
        }
        shares = openings(gates, sets, hidden, gate_thresholds)
        return [{**same, "gate_threshold": tau, **each} for tau, each in zip(gate_thresholds, shares, strict=True)]
