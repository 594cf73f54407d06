"""`grun-bench`: prepare, train, evaluate, sweep, submit, sequential, export, pareto, report, seeds and the like.

Any RunConfig key may follow as `--key value`, e.g. `--adapter lora --adapter.r 8`; `grun-bench keys` lists them.
An error in the user's hands is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from rich.console import Console
from rich.table import Table

from bench.benchmarks import HEADLINES
from bench.results import store
from grun.errors import UserError

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.progress import Progress
    from bench.reports.comparison import Comparison
    from bench.results.storage import Folder
    from bench.runs.execution import Execution
    from bench.studies.pool import Pool

CONFIG_SECTIONS = (
    "benchmark",
    "model",
    "start_from",
    "adapter",
    "forget_loss",
    "retain_loss",
    "training",
    "evaluation",
    "seed",
)
"""Fields of RunConfig; an option that begins with one of them is a RunConfig key."""
DEFAULT_RESULTS = "results/default"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `grun-bench` command."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own future
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        options = _parser().parse_args(words)
        options.run(options, overrides)
    except UserError as error:
        sys.exit(_complain(str(error)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(_complain(f"--results: {error.strerror}; free some, and run it again: what was finished is kept"))
    except KeyboardInterrupt:
        print("grun-bench: interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Command words, and RunConfig keys with their values: YAML, or several values with commas between."""
    words: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or key.split(".")[0] not in CONFIG_SECTIONS:
            words.append(word)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(option, "has no value; write one behind it")
            value = rest.pop(0)
        overrides[key] = _value(option, value)
    return words, overrides


def _value(option: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return yaml.safe_load(f"[{text}]") if isinstance(value, str) and re.fullmatch(r"[\d.,\s]+", value) else value
    except yaml.YAMLError:
        raise UserError(option, f"{text!r} is not a value; quote it, or write a list as 2,3,5") from None


def _prepare(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.runs.run import run_prerequisites

    with _progress() as progress:
        rows = run_prerequisites(_run_config(options, overrides), _execution(options), progress)
    _print_rows(rows)


def _train(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.runs.run import run, run_prerequisites

    config, execution = _run_config(options, _attacked(options, overrides)), _execution(options)
    if store.read_run(execution.folder, config.run_key) is not None:
        console.print(f"{execution.folder} holds this run already; name another --results to do it again")
    with _progress() as progress:
        references = run_prerequisites(config, execution, progress)
        rows = run(config, execution, gate_thresholds=options.gate_thresholds, progress=progress)
    _print_rows([*references, *rows])


def _evaluate(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.config import overlay, run_config
    from bench.files import read_yaml
    from bench.results.storage import location
    from bench.runs.run import run
    from bench.runs.training import TRAINING

    module = location(options.module)
    if not (module / TRAINING).exists():
        raise UserError("MODULE", f"{module} holds no trained module; give a folder under RESULTS/modules")
    with module.read_folder() as local:
        config = run_config(overlay(read_yaml(local / "run.yaml"), _attacked(options, overrides)))
    if config.train_key != module.name:
        raise UserError("MODULE", "only evaluation keys and adapter.gate_threshold can change without training again")
    execution = _execution(options, results=module.parent.parent)
    with _progress() as progress:
        rows = run(config, execution, gate_thresholds=options.gate_thresholds, progress=progress)
    _print_rows(rows)
    if options.lm_eval:
        _lm_eval(options, config, execution)


def _lm_eval(options: argparse.Namespace, config: RunConfig, execution: Execution) -> None:
    """lm-eval's tasks on the module, at the config's own gate threshold."""
    from bench.evaluation.harness import UnlearnedLM, run_lm_eval
    from bench.runs.subject import Subject

    subject = Subject(config=config, execution=execution)
    model = UnlearnedLM(
        subject.loaded(execution.folder / "modules" / config.train_key),
        subject.tokenizer,
        max_length=subject.model.config.get_text_config().max_position_embeddings,
        batch_size=config.evaluation.batch_size,
    )
    found = run_lm_eval(model, options.lm_eval, include=options.lm_eval_include, limit=options.lm_eval_limit)
    file = execution.folder / "lm_eval" / f"{config.run_key}.json"
    file.write((json.dumps(found, indent=1) + "\n").encode())
    table = Table("task", "metric", "value")
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                table.add_row(task, name, _number(value))
    console.print(table)
    console.print(f"every item is in {file}")


def _sweep(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.reports.comparison import compare
    from bench.studies.search_space import read_studies

    studies = [study for file in options.files for study in read_studies(file, overrides, options.num_trials)]
    from bench.studies.sweep import sweep  # Ray, and seconds of imports: only once the files are known to be good

    sweep(studies, _execution(options), _pool(options), _log)
    _print_methods(compare(options.results, dict(studies[0].objectives)))


def _submit(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.config import overlay
    from bench.files import read_yaml
    from bench.results.storage import location
    from bench.studies.search_space import read_studies

    if "://" not in str(location(options.results)) and not Path(options.results).is_absolute():
        raise UserError(
            "--results",
            f"{options.results} is not seen by every node; name s3://, gs:// or a shared /folder",
        )
    spaces = {}
    for number, file in enumerate(options.files):
        read_studies(file, overrides, options.num_trials)  # what is wrong with it is said here and now
        space = read_yaml(file)
        spaces[f"{number}-{Path(file).name}"] = {**space, "base": overlay(space.get("base", {}), overrides)}
    from bench.cluster.submit import submit

    shared = os.environ.get("GRUN_BENCH_SHARED", options.results)
    sys.exit(submit(options.cluster, spaces, sweep_options(options), shared, _log))


def sweep_options(options: argparse.Namespace) -> list[str]:
    """Of a `submit`, the words that `sweep` is to be given again."""
    words = []
    for name, value in vars(options).items():
        if name not in ("run", "cluster", "files") and value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _sequential(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.sequential.studies import read_sequential, run_studies

    studies = [read_sequential(file, overrides, options.num_requests) for file in options.files]
    run_studies(studies, _execution(options), _pool(options), _log)
    _print_sequences(options.results)


def _export(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.sequential.deployment import export

    names = export(options.folder, options.study, options.output, options.without)
    console.print(f"wrote {options.output}: the base model, and the modules of requests {', '.join(names)}")


def _pareto(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.reports.comparison import as_json, compare, write_front_configs
    from bench.results.storage import location

    comparison = compare(options.folder, _objectives(options.objectives), _where(options.where))
    front = location(options.folder) / "front"
    configs = write_front_configs(comparison, front)
    if options.format == "json":
        print(as_json(comparison))
        return
    _print_front(comparison)
    _print_methods(comparison)
    console.print(f"{len(configs)} ready-to-run configs in {front}; grun-bench train FILE runs one")


def _report(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.reports.comparison import compare
    from bench.reports.report import write_report, write_requests_report
    from bench.results.requests import last_states, scan_requests
    from bench.results.storage import location

    folder = location(options.folder)
    comparison = compare(options.folder, _objectives(options.objectives), _where(options.where))
    has_requests = bool((folder / "requests").files(".parquet"))
    if has_requests:
        rows, page, picture = scan_requests(folder), folder / "requests.html", folder / "requests.png"
        write_requests_report(rows, last_states(rows), page, picture)
        console.print(f"wrote {page} and {picture}")
    if comparison.runs or not has_requests:
        page = folder / "report.html"
        picture = location(options.picture) if options.picture else folder / "fronts.png"
        write_report(comparison, options.folder, page, picture)
        console.print(f"wrote {page} and {picture}")


def _seeds(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.reports.comparison import compare
    from bench.results.storage import location
    from bench.studies.seeds import repeat_best, write_table

    comparison = compare(options.folder, _objectives(options.objectives), _where(options.where))
    execution = _execution(options, results=options.folder)
    rows = repeat_best(comparison, options.num_seeds, execution, _pool(options), _log)
    output = location(options.output) if options.output else location(options.folder) / "seeds.md"
    write_table(output, rows, comparison.utility, f"grun-bench seeds {options.folder} --num-seeds {options.num_seeds}")
    console.print(f"wrote {output}")


def _rescore(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.runs.rescore import rescore

    rescored, lost = rescore(options.folder)
    console.print(f"{rescored} runs rescored" + (f", {lost} without readable items left as they were" if lost else ""))


def _compact(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:

    num_runs, num_damaged = store.compact(options.folder)
    console.print(
        f"{num_runs} runs compacted" + (f", {num_damaged} damaged files left as they were" if num_damaged else "")
    )


def _benchmark(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from bench.speed.measure import Effort, measure
    from bench.speed.report import read_records, write_records

    config, others = _run_config(options, overrides), read_records(options.output.with_suffix(".json"))
    effort = Effort(rounds=options.rounds, steps=options.steps, trials=max(0, options.num_trials))
    with _progress() as progress:
        measure(
            config,
            _execution(options, results=options.output.parent),
            effort,
            progress,
            save=lambda record: write_records(options.output, {**others, config.model.name: record}),
        )
    console.print(f"wrote {options.output} and {options.output.with_suffix('.json')}")


def _keys(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    import tyro

    from bench.config import RunConfig

    config = _run_config(argparse.Namespace(file=None), overrides)
    tyro.cli(RunConfig, prog="grun-bench", default=config, args=["--help"], config=(tyro.conf.AvoidSubcommands,))


def _run_config(options: argparse.Namespace, overrides: Mapping[str, Any]) -> Any:
    from bench.config import overlay, run_config
    from bench.files import read_yaml

    return run_config(overlay(read_yaml(options.file) if options.file else {}, overrides))


def _pool(options: argparse.Namespace) -> Pool:
    from bench.studies.pool import Pool

    return Pool(
        num_concurrent=options.num_concurrent,
        time_budget=options.time_budget,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
    )


def _attacked(options: argparse.Namespace, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"evaluation.robustness": {}, **overrides} if options.robustness else overrides


def _execution(options: argparse.Namespace, results: Folder | None = None) -> Execution:
    from bench.results.storage import location
    from bench.runs.execution import Execution

    return Execution(
        results=location(results or options.results),  # absolute: a worker need not run where this command does
        device=options.device,
        engine=options.engine,
        num_threads=options.num_threads,
        num_workers=options.num_workers,
        ray_train=options.ray_train,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker or 0.0,
        accumulation_steps=options.accumulation_steps,
        gradient_checkpointing=options.gradient_checkpointing,
        shard=options.shard,
    )


def _objectives(pairs: Sequence[str] | None) -> Any:
    if pairs is None:
        return None
    objectives = {}
    for pair in pairs:
        name, _, way = pair.partition(":")
        if way not in ("max", "min"):
            raise UserError("--objectives", f"{pair} has no direction; write {name}:max or {name}:min")
        objectives[name] = way
    if not 2 <= len(objectives) <= 3:
        raise UserError("--objectives", f"{len(objectives)} given; name two or three")
    return objectives


def _where(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError("--where", f"{pair} is not COLUMN=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [name for name in HEADLINES if any(row[name] is not None for row in rows)]
    table = Table("method", "gate threshold", *(name.replace("_", " ") for name in shown), "run_key")
    for row in rows:
        values = [row["gate_threshold"], *(row[name] for name in shown)]
        table.add_row(row["method"], *map(_number, values), row["run_key"])
    console.print(table)


def _print_front(comparison: Comparison) -> None:
    names = list(comparison.objectives)
    table = Table("method", *(name.replace("_", " ") for name in names), "gate threshold", "run_key", title="Fronts")
    on_front = {row["run_key"] for row in comparison.front}
    for summary in comparison.methods:
        for row in summary.front:
            recommended = summary.recommended is not None and row["run_key"] == summary.recommended["run_key"]
            marks = ("*" if row["run_key"] in on_front else "") + ("k" if recommended else "")
            cells = [_number(row[name]) for name in names]
            table.add_row(row["method"], *cells, _number(row["gate_threshold"]), f"{row['run_key']} {marks}")
    for row in _references(comparison):
        table.add_row(row["method"], *(_number(row[name]) for name in names), "", "")
    console.print(table)
    console.print("* on the front of all methods; k knee of its own method's front, the balanced choice\n")


def _print_methods(comparison: Comparison) -> None:
    table = Table("method", "runs", "failed", "hypervolume", "best forget ROUGE-L", "utility", title="Methods")
    for heading in ("retain ROUGE-L", "trainable", "train s"):
        table.add_column(heading, justify="right")
    scores = ("forget_rouge_l_recall", comparison.utility, "retain_rouge_l_recall")
    for summary in comparison.methods:
        cells = ["none keeps it", "", "", "", ""]
        if summary.best is not None:
            cells = [_number(summary.best[name]) for name in scores]
            cells += [f"{summary.best['trainable_parameters']:,}", f"{summary.best['train_seconds']:.1f}"]
        counts = [str(summary.num_runs), str(summary.num_failed), _number(summary.hypervolume)]
        table.add_row(summary.method, *counts, *cells)
    for row in _references(comparison):
        table.add_row(row["method"], "", "", "", *(_number(row[name]) for name in scores), "", "")
    console.print(table)
    corner = zip(comparison.objectives, comparison.reference_point, strict=True)
    console.print(
        f"best: least forget ROUGE-L among runs with at least 95 % of the target's {comparison.utility}\n"
        f"hypervolume of all runs {_number(comparison.hypervolume) or None}, "
        f"reference point {', '.join(f'{name} {_number(value) or None}' for name, value in corner)}"
    )
    if comparison.num_damaged:
        console.print(f"{comparison.num_damaged} damaged files were left out; the same sweep does their runs again")


def _print_sequences(folder: str) -> None:
    from bench.results.requests import last_states, scan_requests

    headings = ("forget ROUGE-L", "log10 quality", "utility", "retain ROUGE-L", "gates open")
    table = Table("study", "method", "combination", "requests", title="After the last request")
    for heading in (*headings, "parameters", "train s"):
        table.add_column(heading, justify="right")
    for row in last_states(scan_requests(folder)).to_dicts():
        scores = (row["requested_rouge_l_recall"], row["log10_requested_quality"], row["utility"])
        how = "" if row["combination"] is None else f"{row['combination']} at {row['gate_threshold']:.2f}"
        table.add_row(
            row["study"] + (" *" if row["is_own_variant"] else ""),
            row["method"],
            how,
            str(row["request_index"]),
            *map(_number, (*scores, row["retain_rouge_l_recall"], row["retain_gate_open_share"])),
            f"{row['added_parameters']:,}",
            f"{row['mean_train_seconds']:.1f}",
        )
    console.print(table)
    console.print(
        "* as it was tuned; the others are the same modules used otherwise. ROUGE-L and quality: of all requests.\n"
        "gates open: share of retain prompts that open a gate; train s: mean of a request"
    )


def _references(comparison: Comparison) -> list[dict[str, Any]]:
    return [row for row in (comparison.target_model, comparison.retain_model) if row is not None]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _log(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for the phase under way on a terminal, a line for each finished phase elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def progress(phase: str, done: int, total: int) -> None:
            bars.update(task, description=phase, completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{phase}: {done} of {total}", markup=False)

        yield progress


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="grun-bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text, epilog="RunConfig keys follow as --key value; see `grun-bench keys`."
        )
        added.set_defaults(run=run)
        return added

    def machine(added: argparse.ArgumentParser, results: bool = True) -> None:
        if results:
            added.add_argument("--results", default=DEFAULT_RESULTS, help="results folder: a path, s3:// or gs://")
        added.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where models run")
        added.add_argument(
            "--engine", choices=["auto", "plain"], default="auto", help="plain: check GRUN and ReFT through pyvene"
        )
        added.add_argument("--num-threads", type=_positive, help="torch's CPU threads (in a sweep: --cpus-per-worker)")
        added.add_argument("--num-workers", type=_positive, default=1, help="processes that do one run together")
        added.add_argument("--cpus-per-worker", type=_positive, default=1, help="CPUs and torch threads of a worker")
        added.add_argument("--gpus-per-worker", type=float, help="default: 1 where there are GPUs; fractions share one")
        added.add_argument("--accumulation-steps", type=_positive, default=1, help="passes a step, to use less memory")
        added.add_argument("--gradient-checkpointing", action="store_true", help="full, lora: the same at more time")
        added.add_argument("--shard", action="store_true", help="full: FSDP2, for models that fit no GPU whole")
        added.add_argument(
            "--ray-train", choices=["auto", "always"], default="auto", help="always: also for one worker, as a check"
        )

    def thresholds(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--gate-thresholds", type=_share, nargs="+", default=[], help="evaluate the trained module at these too"
        )

    def pool(added: argparse.ArgumentParser) -> None:
        added.add_argument("--num-concurrent", type=_positive, help="trials at once; default: as many as fit")
        added.add_argument(
            "--time-budget", type=_positive, metavar="MINUTES", help="begin no trial after so long; the same goes on"
        )

    def search(added: argparse.ArgumentParser) -> None:
        added.add_argument("files", nargs="+", metavar="FILE", help="search_spaces/*.yaml")
        machine(added)
        added.add_argument("--num-trials", type=_positive, help="trainings a study, in place of the files' own")
        pool(added)

    def robustness(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--robustness", action="store_true", help="also attack the model; --evaluation.robustness.KEY says how"
        )

    def choice(added: argparse.ArgumentParser) -> None:
        added.add_argument("folder", metavar="RESULTS", help="results folder")
        added.add_argument("--objectives", nargs="+", metavar="METRIC:max|min", help="two or three")
        added.add_argument("--where", nargs="+", metavar="COLUMN=VALUE", default=[], help="only these runs")

    added = command("prepare", _prepare, "Make and evaluate the target and the retain model.")
    added.add_argument("file", nargs="?", help="RunConfig YAML")
    machine(added)
    added = command("train", _train, "One run: unlearn, evaluate, write its rows.")
    added.add_argument("file", nargs="?", help="RunConfig YAML")
    machine(added)
    thresholds(added)
    robustness(added)
    added = command("evaluate", _evaluate, "Evaluate a trained module again, e.g. at other gate thresholds.")
    added.add_argument("module", metavar="MODULE", help="a folder under RESULTS/modules")
    machine(added, results=False)
    thresholds(added)
    robustness(added)
    added.add_argument("--lm-eval", nargs="+", metavar="TASK", help="also run these tasks of lm-evaluation-harness")
    added.add_argument("--lm-eval-include", type=Path, metavar="DIR", help="folder with further task files")
    added.add_argument("--lm-eval-limit", type=_positive, metavar="N", help="only so many items a task")
    added = command("sweep", _sweep, "Search: one study a file, all with equal budgets, resumed where cut off.")
    search(added)
    added = command("submit", _submit, "The same on a cluster that `ray up` made, as a Ray job that is followed.")
    added.add_argument("cluster", metavar="CLUSTER", help="the file that `ray up` was given, e.g. cluster.yaml")
    search(added)
    added = command("sequential", _sequential, "Deletion requests one after another: one method a file, resumed.")
    added.add_argument("files", nargs="+", metavar="FILE", help="search_spaces/sequential_*.yaml")
    machine(added)
    pool(added)
    added.add_argument("--num-requests", type=_positive, help="requests, in place of the files' own")
    added = command("export", _export, "One folder with the base model and all requests' modules, to deploy.")
    added.add_argument("folder", metavar="RESULTS", help="results folder of `sequential`")
    added.add_argument("--study", required=True, help="whose modules: a GRUN study of that folder")
    added.add_argument("--output", type=Path, required=True, help="folder to make")
    added.add_argument("--without", nargs="+", default=[], metavar="REQUEST", help="leave these out, e.g. 003")
    added = command("pareto", _pareto, "Print the fronts; write a RunConfig for each of their points.")
    choice(added)
    added.add_argument("--format", choices=["table", "json"], default="table")
    added = command("report", _report, "Write RESULTS/report.html and a picture of the fronts.")
    choice(added)
    added.add_argument("--picture", help="PNG to write; default: RESULTS/fronts.png")
    added = command("seeds", _seeds, "Each method's best run again with other seeds: a table of mean ± deviation.")
    choice(added)
    machine(added, results=False)
    pool(added)
    added.add_argument("--num-seeds", type=_positive, default=3, help="seeds a method")
    added.add_argument("--output", help="Markdown to write; default: RESULTS/seeds.md")
    added = command("rescore", _rescore, "Compute every metric anew from the stored items.")
    added.add_argument("folder", metavar="RESULTS", help="results folder")
    added = command("compact", _compact, "Put the rows of many small Parquet files into few large ones.")
    added.add_argument("folder", metavar="RESULTS", help="results folder")
    added = command("benchmark", _benchmark, "Time GRUN against pyvene, hooks, LoRA and full fine-tuning, here.")
    added.add_argument("file", nargs="?", help="RunConfig YAML")
    machine(added, results=False)
    added.add_argument("--output", type=Path, default=Path("benchmarks.md"), help="Markdown to write, JSON beside it")
    added.add_argument("--rounds", type=_positive, default=5, help="turns of every contender")
    added.add_argument("--steps", type=_positive, default=5, help="timed steps a turn")
    added.add_argument("--num-trials", type=int, default=16, help="trials of the sweep; 0: none")
    command("keys", _keys, "List the RunConfig keys, for the chosen benchmark, model, adapter and forget loss.")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, with an error in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}; see {self.prog} --help"))


def _complain(message: str) -> int:
    print(f"grun-bench: {message}", file=sys.stderr)
    return 2


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
