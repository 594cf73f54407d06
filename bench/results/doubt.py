"""Whether what was measured of a target model says that there is something to forget."""

import math
from collections.abc import Mapping
from typing import Any

from bench.benchmarks import default_objectives

TOLD_APART = math.log10(0.05)
"""The log10 forget quality below which TOFU calls two models different."""


def doubt(target: Mapping[str, Any], retain: Mapping[str, Any] | None) -> str | None:
    """A line for the user where the target model seems not to know what it is to forget. Given are rows of `runs`.

    By TOFU's measure it cannot be told from the retain model; without that, what it gives away of the forget set is no
    more than the retain model does or, where there is none, than a guess: one answer in four, one token in ten.
    """
    quality = target["log10_forget_quality"]
    name, *_ = default_objectives(target["benchmark"], target["forget_split"])
    if quality is not None:
        is_known = quality < TOLD_APART
    else:
        name = "forget_extraction_strength" if name == "log10_forget_quality" else name
        ignorant = retain[name] if retain else 0.25 if name.endswith("accuracy") else 0.1
        is_known = target[name] is None or target[name] > ignorant
    if is_known:
        return None
    return (
        f"the target model seems not to know the forget set ({name} {target[name]:.3f}), so that forgetting it shows "
        "nothing; teach it longer (model.fine_tuning.num_epochs), or choose what it knows"
    )
