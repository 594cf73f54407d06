"""The states of a sequence in the results folder: which are there, where their weights lie, how a state is written."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from bench.evaluation.asking import Asking, Drafts, drafts_of
from bench.evaluation.evaluate import evenly_spread
from bench.evaluation.robustness import attack
from bench.models.prepare import StartFrom
from bench.progress import Progress
from bench.results import store
from bench.results.columns import REQUESTS_SCHEMA, ItemRow
from bench.results.requests import read_requests, write_requests
from bench.results.storage import Location
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import config_columns
from bench.runs.subject import Subject
from bench.runs.training import TRAINING
from bench.sequential.request import Request, RequestSequence, Variant, requests_of
from bench.sequential.scores import state_scores
from grun.model.forward import Adapted

Say = Callable[[str], None]


@dataclass(frozen=True)
class States:
    """One sequence under way."""

    sequence: RequestSequence
    execution: Execution
    say: Say
    """Gets one line for each state."""
    progress: Progress
    """Told how far what takes long is."""

    @cached_property
    def subject(self) -> Subject:
        """The target model, which every request finds as it is or as the one before left it."""
        return Subject(config=self.sequence.config, execution=self.execution, progress=self.progress)

    @cached_property
    def requests(self) -> list[Request]:
        """What is to be forgotten, in order."""
        return requests_of(self.subject.benchmark, self.sequence.num_requests, self.sequence.extra_requests)

    def asking(self, adapted: Adapted) -> Asking:
        """The subject under an adapter, to be measured."""
        return Asking(
            adapted=adapted,
            template=self.subject.template,
            config=self.sequence.config.evaluation,
            progress=self.progress,
            drafts=self._drafts,
        )

    def attacks(self, asking: Asking, size: int) -> list[ItemRow]:
        """Rows of the attacks on the first `size` requests but for what was never known; without config, none."""
        config, robustness = self.sequence.config, self.sequence.config.evaluation.robustness
        if robustness is None:
            return []
        asked = {index for request in self.requests[:size] if request.split == "forget" for index in request.indices}
        numbered = evenly_spread(self.subject.benchmark.evaluation["forget"], asking.config.max_items_per_split)
        numbered = [(index, item) for index, item in numbered if index in asked]
        return attack(asking, numbered, robustness, config.model.fine_tuning.learning_rate)

    @cached_property
    def _drafts(self) -> Drafts:
        return drafts_of(self.items_of("target_model") or ())

    def missing(self, variant: Variant) -> list[int]:
        """How many requests have been met in each state whose rows are not there yet."""
        sizes = self.sequence.only_after or range(1, len(self.requests) + 1)
        keys = {size: self.sequence.state_key(self.requests[:size], variant) for size in sizes}
        return [size for size, key in keys.items() if not read_requests(self.execution.folder, key)]

    def module(self, request: Request) -> Location:
        """Folder of the module that is trained for a request."""
        return self.execution.folder / "modules" / self.sequence.module_key(request)

    def weights(self, size: int) -> Location:
        """Folder of a chain's weights after so many requests."""
        return self.execution.folder / "modules" / self.sequence.chain_key(self.requests[:size])

    def is_trained(self, folder: Location) -> bool:
        """Whether a module or a chain's weights are there, whole."""
        return (folder / TRAINING).exists()

    def train_seconds(self, folder: Location) -> float:
        """What training it took."""
        return float(json.loads((folder / TRAINING).read())["train_seconds"])

    def items_of(self, start_from: StartFrom) -> list[ItemRow] | None:
        """What the target or the retain model says; None where there is no such model."""
        return store.read_items(self.execution.folder, prerequisite(self.sequence.config, start_from).run_key)

    @cached_property
    def retain_model_items(self) -> list[ItemRow] | None:
        """What forget quality is measured against."""
        return self.items_of("retain_model")

    def write(self, variant: Variant, size: int, items: Sequence[ItemRow], cost: Mapping[str, Any]) -> None:
        """The rows of the state after `size` requests, one a request; and of the last state every item.

        cost: columns of `requests`, among them the gate threshold; None where there are no gates.
        """
        config, key = self.sequence.config, self.sequence.state_key(self.requests[:size], variant)
        common = {
            **{name: value for name, value in config_columns(config).items() if name in REQUESTS_SCHEMA.names},
            "run_key": key,
            "study": self.sequence.study,
            "combination": variant.combination,
            "request_index": size,
            "request": self.requests[size - 1].name,
            **cost,
            **{name: costs.machine(self.subject.device)[name] for name in ("device", "git_sha")},
            "hub_commits": self.subject.commits,
            "created_at": datetime.now(UTC),
        }
        scores = state_scores(items, self.retain_model_items, self.requests, size, cost["gate_threshold"])
        rows = [common | own for own in scores]
        write_requests(self.execution.folder, key, rows, items if size == len(self.requests) else ())
        first = rows[0]
        utility = first["partial_model_utility"] if first["model_utility"] is None else first["model_utility"]
        how = "" if variant.combination is None else f" {variant.combination} at {cost['gate_threshold']:g}"
        self.say(
            f"{self.sequence.study}, {config.method}{how}: request {size} of {len(self.requests)}, "
            f"forget ROUGE-L so far {first['requested_rouge_l_recall']:.3f}, utility {utility:.3f}, "
            f"{cost['train_seconds']:.0f} s + {cost['eval_seconds']:.0f} s"
        )
