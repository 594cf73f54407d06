"""Take over what another tool evaluated: its logs become rows, scored by our formulas."""

from pathlib import Path

from bench.cli.options import RESULTS, Options, settings
from bench.cli.parser import option
from bench.cli.tables import print_rows
from grun.errors import UserError

EXAMPLE = "grun-bench import open-unlearning saves/unlearn/NPO/evals/TOFU_EVAL.json --results results/tofu"
ARGUMENTS = (
    option("tool", choices=["open-unlearning"], metavar="open-unlearning", help="whose logs they are"),
    option("logs", nargs="+", type=Path, metavar="FILE", help="a TOFU_EVAL.json of an unlearned model"),
    option("--name", metavar="METHOD", help="what its method is called (default: the folder it lies in)"),
    option("--target-model", type=Path, metavar="FILE", help="the target model's log, where RESULTS has no such model"),
    option("--retain-model", type=Path, metavar="FILE", help="the retain model's log likewise"),
    RESULTS,
    settings,
)


def run(options: Options) -> None:
    from bench.exchange.imported import import_logs
    from bench.models.prepare import REFERENCES
    from bench.results.storage import location

    results = location(options.results)
    base = {"benchmark": "tofu", **options.setting(results)}
    if "model" not in base:
        raise UserError("--model", "is needed: no log says which model was unlearned, and RESULTS holds no run to tell")
    given = {role: vars(options)[role] for role in REFERENCES if vars(options)[role] is not None}
    print_rows(import_logs(options.logs, options.name, given, base, results))
