"""From what one step takes to what a trial and a study take: GPU seconds and disk."""

from dataclasses import dataclass

from bench.config import RunConfig
from bench.evaluation.robustness import relearning_rates
from bench.planning import Cluster
from bench.planning.amounts import Amounts
from bench.planning.facts import Machine
from bench.planning.rehearsal import Rehearsed
from bench.runs.execution import Execution
from bench.runs.related import has_retain_model
from bench.spaces.search_space import SweepConfig
from grun.training.teach import DTYPES

LOADED_BYTES_S = 1.3e9
"""Weights read and hashed a second: 16 GB in 12 s."""
CURVE = 2.0
"""A curve of gate thresholds takes so many evaluations (measured: 1.5 to 2.4)."""
ROW_BYTES = 830
"""A row of `items` on TOFU (measured)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One study, and all that its cost follows from."""

    study: SweepConfig
    config: RunConfig
    """Of its first trial, which the others are taken to be like."""
    execution: Execution
    cluster: Cluster
    machine: Machine
    amounts: Amounts
    rehearsed: Rehearsed

    def flop(self, phase: str, tokens: int) -> float:
        """Of so many tokens, by what the phase took for its own; 0 where there is no such phase."""
        found = self.rehearsed.phases.get(phase)
        return found.spent.flop / found.tokens * tokens if found else 0.0

    def trial_seconds(self) -> dict[str, float]:
        """GPU seconds of a trial, by what they are for; decoding at most."""
        amounts = self.amounts
        evaluations = CURVE if self.study.gate_thresholds and self.config.adapter.is_gated else 1.0
        everybody = self.execution.num_workers if self.execution.shard else 1  # who has a part of the weights asks all
        weights = self.rehearsed.phases["score"].spent.peak["weights"]
        return {
            "load": self.execution.num_workers * weights / LOADED_BYTES_S,
            "train": self._seconds(self.flop("train", amounts.trained_tokens)),
            "score": evaluations * everybody * self._seconds(self.flop("score", amounts.scored_tokens)),
            "decode": evaluations * everybody * self._decoding(amounts.decoding_steps),
            "attacks": everybody * (self._decoding(amounts.attacking_steps) + self._seconds(self._relearning())),
        }

    def once_seconds(self) -> dict[str, float]:
        """GPU seconds of what comes before all trials: the models, their own evaluation, a node's prefix caches."""
        amounts, models = self.amounts, 2 if has_retain_model(self.config) else 1
        scoring = self._seconds(2 * self.rehearsed.model_parameters * amounts.scored_tokens)
        cached = sum(len(example) for examples, _ in amounts.cached for example in examples)
        return {
            "teach": self._seconds(self.flop("teach", amounts.taught_tokens)),
            "references": models * (scoring + self._decoding(amounts.decoding_steps)),
            "prefix": self._seconds(self.flop("prefix", cached)),
        }

    def storage_gb(self) -> dict[str, float]:
        """What stays of the study, and on each node its prefix caches."""
        trials, parameters = self.study.num_trials, self.rehearsed.model_parameters
        teaching = self.config.model.fine_tuning
        width = DTYPES[teaching.dtype].itemsize
        thresholds = len({*self.study.gate_thresholds, 0.0}) if self.config.adapter.is_gated else 1
        modules = trials * self.rehearsed.trained_bytes if self.config.adapter.is_small else 0
        sizes = {
            "rows": ROW_BYTES * self.amounts.items * trials * thresholds,
            "modules": modules,
            "models": 2 * width * parameters if teaching.num_epochs else 0,
            "prefix_cache": self.amounts.cache_bytes(self.rehearsed.cache_sizes),
        }
        return {name: size / 1e9 for name, size in sizes.items()}

    def _seconds(self, flop: float) -> float:
        return flop / (self.cluster.mfu * self.machine.tflops * 1e12)

    def _decoding(self, steps: int) -> float:
        return steps * self.cluster.decode_ms / 1000

    def _relearning(self) -> float:
        """FLOP of fine-tuning every weight on the attacker's few items, at each rate."""
        robustness = self.config.evaluation.robustness
        if robustness is None:
            return 0.0
        tokens = self.amounts.forget_item_tokens * robustness.relearn_items * robustness.relearn_steps
        rates = relearning_rates(robustness, self.config.model.fine_tuning.learning_rate)
        return len(rates) * 6 * self.rehearsed.model_parameters * tokens
