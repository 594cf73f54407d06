"""Time GRUN against pyvene, hooks, LoRA and full fine-tuning, on this machine."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from bench.cli import options as shared
from bench.cli.parser import Parser, positive
from bench.cli.tables import console, progress

EXAMPLE = "grun-bench benchmark --output benchmarks.md --adapter.learning_rate 0.01 --training.num_epochs 33"


def arguments(parser: Parser) -> None:
    shared.config_file(parser)
    parser.add_argument(
        "--output", type=Path, metavar="MD", default=Path("benchmarks.md"), help="Markdown to write, JSON beside it"
    )
    group = parser.add_argument_group("how long is measured")
    group.add_argument("--rounds", type=positive, metavar="N", default=5, help="turns of every contender (default: 5)")
    group.add_argument("--steps", type=positive, metavar="N", default=5, help="timed steps a turn (default: 5)")
    group.add_argument("--num-trials", type=int, metavar="N", default=16, help="trials; 0: no sweep (default: 16)")
    shared.where_it_runs(parser)


def run(options: Namespace) -> None:
    execution = shared.execution(options, options.output.parent)
    config = shared.run_config(options, options.settings)
    from bench.speed.measure import Effort, measure
    from bench.speed.report import read_records, write_records

    others = read_records(options.output.with_suffix(".json"))
    effort = Effort(rounds=options.rounds, steps=options.steps, trials=max(0, options.num_trials))
    with progress() as shown:
        measure(
            config,
            execution,
            effort,
            shown,
            save=lambda record: write_records(options.output, {**others, config.model.name: record}),
        )
    console.print(f"wrote {options.output} and {options.output.with_suffix('.json')}")
