"""What commands print: tables, lines, and how far something is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from bench.progress import Progress
    from bench.reports.comparison import Comparison
    from bench.reports.judged import Verdict

KEY_COLUMNS = 16
"""Of a run_key, which is of no use in parts."""
console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def _method() -> Column:
    """A column of names, none of which may be cut: they are what `--where method=` takes."""
    return Column("method", overflow="fold")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a run, with those of its benchmark's headlines that any of them has."""
    from bench.benchmarks import HEADLINES

    shown = [name for name in HEADLINES if any(row[name] is not None for row in rows)]
    table = Table(_method(), "gate threshold", *(name.replace("_", " ") for name in shown), padding=0)
    table.add_column("run_key", no_wrap=True, min_width=KEY_COLUMNS)
    for row in rows:
        values = [number(row[name]) for name in shown]
        table.add_row(row["method"], threshold(row), *values, row["run_key"])
    console.print(table)


def print_front(comparison: Comparison) -> None:
    """A line for each point of each method's front."""
    names = list(comparison.objectives)
    table = Table(_method(), title="Fronts", box=SIMPLE_HEAD, padding=0)
    for heading in (*(name.replace("_", " ") for name in names), "gate threshold"):
        table.add_column(heading, justify="right")
    table.add_column("run_key", no_wrap=True, min_width=KEY_COLUMNS + 3)
    on_front = {row["run_key"] for row in comparison.front}
    for summary in comparison.methods:
        for row in summary.front:
            recommended = summary.recommended is not None and row["run_key"] == summary.recommended["run_key"]
            marks = ("*" if row["run_key"] in on_front else "") + ("k" if recommended else "")
            cells = [number(row[name]) for name in names]
            table.add_row(row["method"], *cells, threshold(row), f"{row['run_key']} {marks}")
    for row in comparison.references:
        table.add_row(row["method"], *(number(row[name]) for name in names), "", "")
    console.print(table)
    console.print("* on the front of all methods; k knee of its own method's front, the balanced choice\n")


def print_methods(comparison: Comparison) -> None:
    """A line a method, and what its columns mean."""
    table = Table(_method(), title="Methods", box=SIMPLE_HEAD, padding=0)
    counted, own, costs = ("runs", "failed", "hyper-\nvolume"), "its\nutility", ("its train-\nable", "train\ns")
    for heading in (*counted, "best log10\nquality", own, "least\nforget\nROUGE-L", own, *costs):
        table.add_column(heading, justify="right")
    by_quality, by_rouge = ("log10_forget_quality", comparison.utility), ("forget_rouge_l_recall", comparison.utility)
    for summary in comparison.methods:
        best, quality = summary.best, summary.best_quality
        cells = ["none keeps it" if comparison.says_best else "", "", "", "", "", ""]
        if best is not None:
            cells = [number(quality[name]) if quality else "" for name in by_quality]
            cells += [number(best[name]) for name in by_rouge]
            chosen = quality or best
            spent = (("trainable_parameters", ",.0f"), ("train_seconds", ".1f"))
            cells += ["" if chosen[name] is None else format(chosen[name], how) for name, how in spent]
        counts = [str(summary.num_runs), str(summary.num_failed), number(summary.hypervolume)]
        table.add_row(summary.method, *counts, *cells)
    for row in comparison.references:
        table.add_row(row["method"], "", "", "", *(number(row[name]) for name in (*by_quality, *by_rouge)), "", "")
    console.print(table)
    worst, ideal = comparison.corners.worst, comparison.corners.best
    corner = ", ".join(f"{name} {number(low) or None}" for name, low in zip(comparison.objectives, worst, strict=True))
    until = "in their own units" if ideal is None else f"to the retain model's {', '.join(map(number, ideal))} (1)"
    console.print(
        f"least, best: among runs with at least {comparison.utility_kept:.0%} of the target's {comparison.utility}\n"
        f"hypervolume of all runs {number(comparison.hypervolume) or None}\n"
        f"reference point {corner}; {until}"
    )
    if comparison.num_unscored:
        names = " or ".join(comparison.objectives)
        console.print(f"{comparison.num_unscored} runs without {names} were left out; --objectives chooses others")
    if comparison.num_damaged:
        console.print(f"{comparison.num_damaged} damaged files were left out; the same sweep does their runs again")


def print_sequences(last_states: Sequence[Mapping[str, Any]]) -> None:
    """A line a sequence and way to combine its modules. last_states: rows of `bench.results.requests.last_states`."""
    named = Column("study\nmethod", overflow="fold", min_width=17)
    table = Table(named, Column("how", overflow="fold"), box=SIMPLE_HEAD, padding=0, title="After the last request")
    scored = ("forget\nROUGE-L", "log10\nquality", "utility", "retain\nROUGE-L", "gates\nopen")
    for heading in ("re-\nquests", *scored, "parameters", "train s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in last_states:
        scores = (row["requested_rouge_l_recall"], row["log10_requested_quality"], row["utility"])
        how = "" if row["combination"] is None else f"{row['combination']}\nat {threshold(row, digits=2)}"
        table.add_row(
            row["study"] + (" *" if row["is_own_variant"] else "") + f"\n{row['method']}",
            how,
            str(row["request_index"]),
            *map(number, (*scores, row["retain_rouge_l_recall"], row["retain_gate_open_share"])),
            f"{row['added_parameters']:,}",
            f"{row['mean_train_seconds']:.1f}",
        )
    console.print(table)
    console.print(
        "* as it was tuned; the others are the same modules used otherwise. ROUGE-L and quality: of all requests.\n"
        "gates open: share of retain prompts that open a gate; train s: mean of a request"
    )


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """A line a metric, and what its columns mean."""
    from bench.reports.judged import heading

    kinds = list(verdicts[0].robustness) if verdicts else []
    table = Table("metric", "AUC", box=None, title="Metrics", title_justify="left")
    for kind in kinds:
        for name in (f"{kind}:", "R", "Q", "overall"):
            table.add_column(name, justify="right")
    for verdict in verdicts:
        cells = [heading(verdict.metric), number(verdict.faithfulness)]
        for found in verdict.robustness.values():
            cells.append(f"{found.num_forgotten}/{found.num_models}")
            cells += [number(value) for value in (found.relearning, found.quantization, found.overall)]
        table.add_row(*cells)
    console.print(table)
    console.print(
        "AUC: faithfulness, models that know the forget set against models that do not; 0.5 tells nothing.\n"
        f"{', '.join(kinds)}: unlearned models that the metric takes for having forgotten, of those that keep\n"
        "80 % of the target's utility; R: 1 where relearning shows no more of them than of the retain model,\n"
        "Q: 1 where 4 bits show no more of them; overall: harmonic mean of AUC and of R's and Q's own;\n"
        "empty: nothing to judge by"
    )


def print_plan(record: Mapping[str, Any]) -> None:
    """A table of memory a study, and a line each for what it trains on, how long, and what does not fit."""
    for study in record["studies"]:
        parts = ("weights", "gradients", "optimiser", "activations", "total")
        title = f"{study['study']}: {study['method']}, {study['trained_parameters']:,} parameters trained"
        table = Table("GB a worker, at its peak", title=title, box=SIMPLE_HEAD, padding=0, title_justify="left")
        for part in parts:
            table.add_column(part, justify="right")
        for phase, peak in study["peak_gb"].items():
            table.add_row(phase, *(f"{peak[part]:.1f}" for part in parts))
        console.print(table)
        tokens, pflop, storage = (study[name] for name in ("tokens", "pflop", "storage_gb"))
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in study["trial_gpu_seconds"].items() if value)
        trained = f"{tokens['trained']:,} tokens trained on ({pflop['train']:.1f} PFLOP)"
        log(f"a trial: {trained}, {tokens['scored']:,} scored,")
        log(f"  {study['decoding_steps']:,} steps decoded at most; of one GPU {seconds}")
        log(f"{study['num_trials']} trials: {study['num_trials'] * study['trial_gpu_hours']:.1f} GPU hours")
        once = ", ".join(f"{name} {value / 3600:.1f}" for name, value in study["once_gpu_seconds"].items() if value)
        log(f"before them, GPU hours: {once}; storage, GB: {', '.join(f'{k} {v:.2f}' for k, v in storage.items())}")
        log(f"DOES NOT FIT: {study['problem']}" if study["problem"] else f"fits {record['gpu']}")
        if found := study["measured"]:
            decoded = "" if found["decode_ms"] is None else f", {found['decode_ms']:.1f} ms a decoding step"
            step = f"{found['step_ms']:.0f} ms a step of {found['step_tokens']:,} tokens"
            log(f"measured on {found['device']}: {step}, {found['peak_gb']:.1f} GB{decoded}")
        log(f"reckoned with {study['mfu']:.1%} of the GPU's peak, {study['decode_ms']:.1f} ms a decoding step")
        if study["made_up_texts"]:
            log("texts: made up, as long as the benchmark's own")
        log("")
    cost = "" if record["cost"] is None else f", {record['cost']:,.0f} $"
    log(f"all: {record['gpu_hours']:.1f} GPU hours, {record['hours']:.1f} hours on {record['num_gpus']}{cost}")
    if not any(study["measured"] for study in record["studies"]):
        log("computed, not measured")


def number(value: float | None) -> str:
    """Three digits, or nothing where there is no value."""
    return "" if value is None else f"{value:.3f}"


def threshold(row: Mapping[str, Any], digits: int = 3) -> str:
    """A row's gate threshold; where it was chosen, with the share of held-back prompts that open a gate at it."""
    if row["gate_threshold"] is None:
        return ""
    shown = f"{row['gate_threshold']:.{digits}f}"
    return shown if row["false_openings"] is None else f"{shown} ({row['false_openings']:.2%} open)"


def log(line: str) -> None:
    """A line as it is, however long."""
    console.print(line, soft_wrap=True, markup=False)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
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
