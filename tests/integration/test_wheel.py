"""The wheel alone, in an environment that sees what it depends on and no checkout: spaces, init, a sweep by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from bench.results import store

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "cluster.yaml", "clusters", "search_spaces")
PACKAGES = ("bench", "grun", "pyvene_custom")
TINY = {
    "forget-loss": "npo",
    "benchmark.num-authors": 5,
    "model.num-layers": 3,
    "model.hidden-size": 16,
    "model.vocab-size": 300,
    "model.fine-tuning.num-epochs": 1,
    "training.num-epochs": 1,
    "evaluation.max-items-per-split": 2,
    "evaluation.max-new-tokens": 2,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, so that no leftover of a build gets into the checkout or the wheel."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*BUILT_FROM, *PACKAGES):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(built), str(source)], check=True)
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`grun-bench` of an environment with the wheel, which sees this one's packages but for the checkout's own: a path
    in a .pth file does not have its own .pth files read."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join({sysconfig.get_path(kind) for kind in ("purelib", "platlib")}))
    return str(folder / "bin" / "grun-bench")


def _run(*words: str, where: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_works_without_a_checkout(command: str, tmp_path: Path) -> None:
    code = "import bench, grun, pyvene_custom; print(*bench.__path__, *grun.__path__, *pyvene_custom.__path__)"
    places = _run(str(Path(command).with_name("python")), "-c", code, where=tmp_path).split()
    assert len(places) == len(PACKAGES)
    assert all(Path(place).is_relative_to(Path(command).parents[1]) for place in places), "not the checkout's"

    listed = {line.split()[0] for line in _run(command, "spaces", where=tmp_path).splitlines()}
    spaces = ROOT / "search_spaces"
    assert listed == {file.relative_to(spaces).with_suffix("").as_posix() for file in spaces.rglob("*.yaml")}
    _run(command, "init", "mine", where=tmp_path)
    assert (tmp_path / "mine" / "cluster.yaml").read_bytes() == (ROOT / "cluster.yaml").read_bytes()

    settings = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    words = ("sweep", "demo_grun", "--num-trials", "1", "--num-concurrent", "1", "--results", "found")
    _run(command, *words, *settings, where=tmp_path)
    rows = store.scan_runs(tmp_path / "found")
    assert set(rows["method"]) == {"grun+npo", "target_model", "retain_model"}
    assert rows["status"].unique().to_list() == ["ok"]


def test_a_wheel_has_every_file_that_a_package_reads(wheel: Path) -> None:
    """All that lies in the packages' folders but what Python makes there."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    read = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert len(read) > 150
    assert read <= inside
