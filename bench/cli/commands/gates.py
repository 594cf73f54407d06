"""How well gates tell requests apart: fitted to hidden states, no edit trained."""

import argparse
from dataclasses import fields

from bench.cli.options import ONE_RUN, RESULTS, Options
from bench.cli.parser import fields_of, option, positive, share
from bench.cli.tables import progress
from bench.runs.execution import Execution

EXAMPLE = "grun-bench gates --benchmark tofu --model smollm2 --model.fine_tuning.num_epochs 0"
_SAYS = "of TOFU up to 100, its last authors (default: 20)"
_LAYERS = "that gates read: 0.8, 1.0 the last one; a whole number is an index from 0 (default: the adapter's)"
_THRESHOLDS = "below which a gate is shut (default: 0.3 0.5 0.9)"
_OF_TRAINING = [field.name for field in fields(Execution) if field.name not in ("device", "num_threads")]


def _layer(text: str) -> int | float:
    if text.isdigit():
        return int(text)
    if (depth := share(text)) == 0:
        raise argparse.ArgumentTypeError("there is no layer 0.0; write 0 for the first one")
    return depth


ARGUMENTS = (
    *ONE_RUN,
    RESULTS,
    option("--num-requests", type=positive, nargs="+", metavar="K", default=[20], help=_SAYS),
    option("--layers", type=_layer, nargs="+", metavar="X", default=[], help=_LAYERS),
    option("--gate-thresholds", type=share, nargs="+", metavar="X", default=[0.3, 0.5, 0.9], help=_THRESHOLDS),
    fields_of("where it runs", Execution, _OF_TRAINING),
)


def run(options: Options) -> None:
    execution, config = options.execution(), options.run_config()
    from bench.gating.study import GateStudy
    from bench.reports.gates import gates_table

    with progress() as shown:
        rows = GateStudy(config, execution, shown).rows(options.layers, options.num_requests, options.gate_thresholds)
    print("\n".join(gates_table(rows)))
