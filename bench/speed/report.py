"""Records of `bench.speed.measure` as JSON, and as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


def read_records(file: Path) -> dict[str, Record]:
    """Records by model; empty where there is no such file."""
    return json.loads(file.read_text()) if file.is_file() else {}


def write_records(file: Path, records: Mapping[str, Record]) -> None:
    """`file` is the Markdown; the JSON lies beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    file.write_text("\n".join(_lines(records)) + "\n")


def _lines(records: Mapping[str, Record]) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "Written by `grun-bench benchmark`; the JSON file beside this one holds the same figures. Contenders take"
    yield "turns in every round; figures are medians, followed by (smallest–largest)."
    for name, record in records.items():
        machine, effort, config = record["machine"], record["effort"], record["config"]
        yield from ("", f"## {name}", "")
        yield (
            f"{machine['device']}, {machine['num_threads']} threads; {config['benchmark']['name']} "
            f"{config['benchmark'].get('forget_split') or ''}; batch "
            f"{config['training']['batch_size']} + {config['training']['batch_size']}; {effort['rounds']} rounds of "
            f"{effort['steps']} steps; commit {(machine['git_sha'] or 'unknown')[:12]}."
        )
        yield from _steps(record["steps"])
        for section, lines in (("cache", _cache), ("evaluation", _evaluation), ("memory", _memory), ("sweep", _sweep)):
            if section in record:
                yield ""
                yield from lines(record[section])


def _steps(rows: list[Record]) -> Iterator[str]:
    yield from ("", "### A training step", "")
    yield "Milliseconds. pyvene and hooks run GRUN's edits on the whole model, as its authors do: head on every token,"
    yield "one padded batch, and with NPO a second forward of the forget half. At best: what counting multiplications"
    yield "allows the engine over hooks."
    yield ""
    yield "| forget loss | edited layers | pyvene | hooks | engine | × pyvene | × hooks | at best | reached |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        engine = row["engine"]["median"]
        over_pyvene, over_hooks = row["pyvene"]["median"] / engine, row["hooks"]["median"] / engine
        times = " | ".join(_ms(row[name]) for name in ("pyvene", "hooks", "engine"))
        yield (
            f"| {row['forget_loss']} | {row['layers']} {row['indices']} | {times} | {over_pyvene:.1f} "
            f"| {over_hooks:.1f} | {row['best_ratio']:.1f} | {over_hooks / row['best_ratio']:.0%} |"
        )
    yield ""
    yield "| forget loss | LoRA | full | GRUN's engine, layers | × LoRA | × full |"
    yield "|---|--:|--:|---|--:|--:|"
    for row in rows:
        ratios = " | ".join(f"{row[name]['median'] / row['engine']['median']:.1f}" for name in ("lora", "full"))
        times = " | ".join(_ms(row[name]) for name in ("lora", "full"))
        yield f"| {row['forget_loss']} | {times} | {row['layers']} | {ratios} |"


def _cache(cache: Record) -> Iterator[str]:
    epochs = cache["build_s_per_item"] / cache["naive_epoch_s_per_item"]
    yield from ("### The prefix cache", "")
    yield "| build, ms an item | in naive epochs | MB an item | opened by the next process, s |"
    yield "|--:|--:|--:|--:|"
    yield (
        f"| {cache['build_s_per_item'] * 1e3:.1f} | {epochs:.2f} | {cache['mb_per_item']:.3f} "
        f"| {cache['second_open_s']:.2f} |"
    )


def _evaluation(evaluation: Record) -> Iterator[str]:
    naive, shut = evaluation["naive"]["median"], evaluation["naive_shut"]["median"]
    yield from (f"### Evaluating one trained module on {evaluation['items']} items", "")
    yield "Naive: everything through pyvene, for each threshold anew. Reused: prefixes from the cache, shut gates"
    yield f"answered by the base model's rows, which cost {evaluation['base_model_s']:.1f} s once."
    yield ""
    yield "| | naive, s | reused, s | share |"
    yield "|---|--:|--:|--:|"
    reused, reused_shut, curve = (evaluation[name] for name in ("reused", "reused_shut", "reused_curve"))
    opened = evaluation["forget_prompts_open_at_shut"]
    yield f"| soft gate | {_s(evaluation['naive'])} | {_s(reused)} | {reused['median'] / naive:.0%} |"
    yield (
        f"| gates shut off the forget set, open on {opened:.0%} of it "
        f"| {_s(evaluation['naive_shut'])} | {_s(reused_shut)} | {reused_shut['median'] / shut:.0%} |"
    )
    yield (
        f"| curve of 21 thresholds (naive: 21 × one) | {21 * naive:.1f} | {_s(curve)} "
        f"| {curve['median'] / naive:.0%} of one naive, {curve['median'] / reused['median']:.0%} of one reused |"
    )


def _memory(memory: Record) -> Iterator[str]:
    yield from ("### Memory of two steps", "")
    yield "| GB | " + " | ".join(memory) + " |"
    yield "|---|" + "--:|" * len(memory)
    yield "| before the first step | " + " | ".join(f"{each['before_gb']:.2f}" for each in memory.values()) + " |"
    yield "| peak | " + " | ".join(f"{each['peak_gb']:.2f}" for each in memory.values()) + " |"


def _sweep(sweep: Record) -> Iterator[str]:
    yield from (f"### A sweep of {sweep['trials']} GRUN trials at {sweep['gate_thresholds']} thresholds each", "")
    yield f"| | engine | naive ({sweep['naive_trials_run']} run, scaled up) | one full fine-tuning run |"
    yield "|---|--:|--:|--:|"
    yield f"| seconds | {sweep['engine_s']:.0f} | {sweep['naive_s']:.0f} | {sweep['full_s']:.1f} |"


def _ms(seconds: Record) -> str:
    return f"{seconds['median'] * 1e3:.0f} ({seconds['min'] * 1e3:.0f}–{seconds['max'] * 1e3:.0f})"


def _s(seconds: Record) -> str:
    return f"{seconds['median']:.1f} ({seconds['min']:.1f}–{seconds['max']:.1f})"
