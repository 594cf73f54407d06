"""The modules of a finished study as one folder to deploy."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import polars as pl

from bench.config import run_config
from bench.exchange.card import Exported, Score, write_card
from bench.files import check_new_folder
from bench.results.columns import STATE_METRICS
from bench.results.requests import last_states, read_requests, scan_requests
from bench.results.storage import Folder, location
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from bench.sequential.request import ExtraRequest, RequestSequence
from grun.errors import UserError
from grun.sequential import save_deployment


def export(results_folder: Folder, study: str, output: Path, without: Sequence[str]) -> list[str]:
    """Write the modules of a finished study as one deployment; returns the requests whose modules are in it.

    without: requests to leave out, by name. Raises UserError where there is no such study or request, or something else
    where the deployment is to be.
    """
    check_new_folder("--output", output)
    folder = location(results_folder)
    last = last_states(scan_requests(folder)).filter("is_own_variant", pl.col("combination").is_not_null(), study=study)
    if last.is_empty():
        raise UserError("--study", f"{folder} holds no finished study {study} whose modules stack")
    row = last.row(0, named=True)
    config = run_config(json.loads(row["config_json"]))
    assert config.adapter.is_stackable
    met = [state["evaluated_request"] for state in read_requests(folder, row["run_key"]) if state["is_requested"]]
    extra = tuple(name for name in met if name in get_args(ExtraRequest))
    sequence = RequestSequence(
        study=study, config=config, num_requests=len(met) - len(extra), extra_requests=extra, variants=()
    )
    names = [request.name for request in sequence.requests()]
    unknown = set(without) - set(names)
    if unknown:
        raise UserError("--without", f"{min(unknown)} is no request of {study}; they are {', '.join(names)}")
    subject = Subject(config=config, execution=Execution(results=folder, device="cpu"))
    with ExitStack() as stack:
        modules = {
            request.name: stack.enter_context((folder / "modules" / sequence.module_key(request)).read_folder())
            for request in sequence.requests()
            if request.name not in without
        }
        save_deployment(
            output, subject.model, subject.tokenizer, config.adapter, modules, row["combination"], row["gate_threshold"]
        )
    if config.model.prompt is not None:
        config.model.prompt.save(output)
    scores = [] if without else [metric for metric in STATE_METRICS if row[metric] is not None]
    write_card(
        output,
        subject,
        Exported(kind="module", base=None),
        row,
        f"{len(modules)} deletion requests",
        [Score(metric, metric.replace("_", " "), [row[metric], None, None]) for metric in scores],
    )
    return list(modules)
