"""A model on the table and how it is asked: which items, how many at once, how long its answers may be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from bench.progress import Progress, quiet
from grun.model.forward import Adapted
from grun.prompts.template import PromptTemplate
from grun.settings import LATER
from grun.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """Which attacks, and how hard."""

    prefix_share: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Share of the answer's tokens that the prefix attack gives away, at least one."""
    relearn_items: Annotated[int, Ge(0)] = 10
    """Forget items that the attacker has, at most half of them; the others' answers are what must not come back. 0: no
    relearning, which needs the memory of training every weight."""
    relearn_steps: Annotated[int, Ge(1)] = 10
    """Steps on all of them at once, of every weight, the adapter left on."""
    relearn_learning_rates: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] | None = None
    """AdamW's learning rates, each tried; the one that brings most back counts. None: model.fine_tuning's and a tenth
    of it."""
    quantize: bool = False
    """Also ask with weights in 8 and in 4 bits."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is evaluated; none of it changes what a score means."""

    batch_size: Annotated[int, Ge(1)] = 64
    """Sequences a forward pass."""
    max_new_tokens: Annotated[int, Ge(1)] = 200
    """Length at which a generation is cut."""
    max_items_per_split: Annotated[int, Ge(2)] | None = None
    """Evaluate only so many items of each split, evenly spread over it. None: all."""
    gradient_norms: bool = field(default=False, metadata=LATER)
    """Also infer membership by gradient norm: a pass back an item of the forget and the holdout set."""
    robustness: RobustnessConfig | None = None
    """Also attack the model, and measure what comes back of the forget set. None: no attacks."""
    after: Literal["relearning", "4_bit"] | None = field(default=None, metadata=LATER)
    """Measure all scores of the forget set, and no attacks, after the whole of it was relearned (as `robustness` has
    it, by the last of its learning rates) or the weights were rounded. None: of the model as it is."""


Drafts = Mapping[tuple[str, int], str]
"""(split, item_index) → what another model answered there."""


def drafts_of(rows: Iterable[Mapping[str, Any]]) -> Drafts:
    """Of rows of `items`."""
    return {(row["split"], row["item_index"]): row["generation"] for row in rows if row["generation"]}


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Who is asked, and how."""

    adapted: Adapted
    template: PromptTemplate
    config: EvaluationConfig
    progress: Progress = quiet
    """Told of `evaluate <split>`, once its answers are scored; of `evaluate answers`, done and in all, of any split;
    and of attacks."""
    workers: Workers = ALONE
    """They share out the items of each split; every one gets all rows."""
    drafts: Drafts = field(default_factory=dict)
    """Of the target model: often the answer still, and then read in one pass."""
    decode_all: bool = False
    """Also decode the answers that follow from the likelihoods, token by token, as a check of those that do."""
