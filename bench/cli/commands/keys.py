"""List the settings of the chosen benchmark, model, adapter and forget loss."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from bench.cli.options import ONE_RUN, Options
from bench.cli.parser import allowed
from bench.cli.tables import console

EXAMPLE = "grun-bench keys --adapter lora --forget-loss npo"
ARGUMENTS = ONE_RUN
OTHER = "any other name"
"""In place of the name of a config that has many, such as a model of the hub."""


def run(options: Options) -> None:
    config = options.run_config()
    from bench.config import COMPONENTS, OF_LOSSES, RunConfig
    from bench.validation import schemas

    known = schemas(RunConfig)
    settings = config.to_dict()
    for decides_nothing in OF_LOSSES - settings.keys():
        del known["RunConfig"]["properties"][decides_nothing]
    for kinds in COMPONENTS:
        component = getattr(config, kinds.field)
        if type(component) not in kinds.own:  # from outside: listed with its own settings, under its whole path
            known |= {kinds.name_of(component): schemas(type(component))[type(component).__name__]}
    table = Table("setting", "value", "allowed", "meaning", box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for key, *cells in _lines(known, "RunConfig", settings, ""):
        table.add_row(f"--{key}", *cells)
    console.print(table, markup=False)


def configs_of(kinds: Mapping[str, Any], field: Mapping[str, Any]) -> dict[str, str]:
    """The configs that a field of a JSON schema may hold: what a setting calls it → its own schema's name."""
    holders = (field, *field.get("oneOf", ()), *field.get("anyOf", ()))
    inner = [each["$ref"].rpartition("/")[2] for each in holders if "$ref" in each]
    return {kinds[each]["properties"].get("name", {}).get("const", OTHER): each for each in inner}


def _lines(
    kinds: Mapping[str, Any], kind: str, chosen: Mapping[str, Any], above: str
) -> Iterator[tuple[str, str, str, str]]:
    """(key, value, what is allowed, meaning) of each field; where one of several configs is chosen, of its fields.

    kinds: schemas by name. kind: one of them. chosen: the settings made in it. above: what its keys begin with.
    """
    for name, field in kinds[kind]["properties"].items():
        if name == "name":  # said by whoever holds it
            continue
        key, value, meaning = above + name, chosen.get(name, field.get("default")), field.get("description", "")
        by_name = configs_of(kinds, field)
        inner = list(by_name.values())
        if not inner:
            yield key, value if isinstance(value, str) else json.dumps(value), allowed(field), " ".join(meaning.split())
            continue
        settings = {"name": value} if isinstance(value, str) else value or {}
        config = (
            settings["name"] if settings.get("name") in kinds else by_name.get(settings.get("name", OTHER), inner[-1])
        )
        if len(inner) > 1:
            yield key, settings["name"], " or ".join(by_name), f"{meaning} {kinds[config]['description']}"
        elif value is None:
            yield key, "null", "null or {}", meaning
        yield from _lines(kinds, config, settings, f"{key}.")
