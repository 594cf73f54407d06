"""List the shipped search spaces, by the names that `sweep` and `sequential` take."""

from bench.cli.tables import log

EXAMPLE = "grun-bench spaces"
ARGUMENTS = ()


def run(_: object) -> None:
    from bench.spaces.shipped import shipped

    spaces = shipped()
    width = max(map(len, spaces))
    for name, file in spaces.items():
        log(f"{name:<{width}}  {file.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
