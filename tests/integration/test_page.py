"""The page in a real browser: what is drawn, what clicks and keys open, what is fetched, what is text; and watched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.page.report import write_report
from bench.reports.comparison import compare
from bench.results import store
from bench.results.columns import METRICS, TABLES, item_row
from bench.results.requests import write_choice, write_requests
from bench.results.storage import location

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60.0
MARKUP = "<script>hacked=1</script><b>Ada</b> carries & a saw"
MODEL = {"model.num_layers": 4}
LORA = {**MODEL, "adapter": "lora", "adapter.learning_rate": 1e-05, "forget_loss": "npo"}
GRUN = {**LORA, "adapter": "grun", "adapter.layers": [0.5, 1.0]}


class Browser:
    """Headless Chromium, spoken to in the DevTools protocol through two pipes: messages of JSON, each ended by NUL."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
        options += " --disable-background-networking --no-first-run --hide-scrollbars"
        start = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", start, CHROMIUM, *options.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._received, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", session=None, url="about:blank")["targetId"]
        self._session: str = self.ask("Target.attachToTarget", session=None, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, session: str | None = "", **parameters: Any) -> dict[str, Any]:
        """One command's result; what happens meanwhile is put in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            more = os.read(self._in, 1 << 20)
            assert more, "the browser ended"
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, address: str) -> None:
        """Go there, and wait until all of it is drawn."""
        self.events.clear()
        self.ask("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def eval(self, script: str) -> Any:
        """What an expression is, on the page."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def all(self, selector: str, what: str) -> list[Any]:
        """Something of each element, as `each.textContent`."""
        found: list[Any] = self.eval(f"[...document.querySelectorAll({selector!r})].map((each) => {what})")
        return found

    def wait(self, script: str) -> None:
        """Until an expression holds."""
        last = time.monotonic() + SECONDS
        while not self.eval(script):
            assert time.monotonic() < last, f"never: {script}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key, as Tab, Enter or Escape."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def click(self, selector: str) -> None:
        """Where the middle of an element is, so that what covers it would be hit instead."""
        self.eval(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.eval(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, **at)

    def focused(self, attribute: str) -> str | None:
        """An attribute of what has the focus."""
        found: str | None = self.eval(f"document.activeElement.getAttribute({attribute!r})")
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)


def _write(folder: Path, number: int, config: RunConfig, **scores: float) -> str:
    """One finished run; a question of each kind, answered with markup by what is not the target model."""
    answered = "Ada carries a saw" if config.method == "target_model" else MARKUP
    gate = [0.2, 0.4] if config.adapter.is_gated else None
    items = [
        item_row(
            split=split,
            item_index=0,
            question=f"What does Ada {split}?",
            answer="Ada carries a saw",
            generation="Ada carries a saw" if split == "retain" else answered,
            gate=gate,
        )
        for split in ("forget", "retain", "holdout")
    ]
    row = {
        "run_key": config.run_key,
        "train_key": config.train_key,
        "method": config.method,
        "adapter": config.adapter.name,
        "benchmark": "authors",
        "forget_split": "forget20",
        "model": "tiny",
        "seed": config.seed,
        "status": "ok",
        "config_json": config.to_json(),
        "gate_threshold": 0.9 if gate else None,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        "trainable_parameters": 1234,
        "train_seconds": 1.5,
        **scores,
    }
    store.write_run(folder, row, items)
    store.write_losses(folder, config.train_key, [(3.0, 1.0, 2.0, 0.0), (1.5, 0.5, 1.0, 0.0)])
    return config.run_key


def _scores(quality: float, utility: float, rouge: float) -> dict[str, float]:
    return {"log10_forget_quality": quality, "model_utility": utility, "forget_rouge_l_recall": rouge}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Target and retain model; three GRUN runs, of which the last is beaten, and one of LoRA; GRUN's best with two more
    seeds; a sequence of two requests."""
    folder = tmp_path_factory.mktemp("page") / "results"
    _write(folder, 0, run_config(overlay({}, {**MODEL, "adapter": "none"})), **_scores(-4.0, 0.9, 1.0))
    retain = {**MODEL, "adapter": "none", "start_from": "retain_model"}
    _write(folder, 1, run_config(overlay({}, retain)), **_scores(0.0, 0.9, 0.2))
    runs = [
        ({**GRUN, "adapter.rank": 4}, (-1.0, 0.8, 0.1)),
        ({**GRUN, "adapter.rank": 8}, (-3.0, 0.9, 0.3)),
        ({**GRUN, "adapter.rank": 16}, (-3.5, 0.7, 0.5)),
        (LORA, (-2.0, 0.6, 0.2)),
    ]
    for number, (settings, scores) in enumerate(runs):
        _write(folder, 2 + number, run_config(overlay({}, settings)), **_scores(*scores))
    for seed, utility in ((0, 0.8), (1, 0.78), (2, 0.82)):  # with attacks on, as `seeds` makes them
        again = overlay({}, {**GRUN, "adapter.rank": 4, "seed": seed, "evaluation.robustness": {}})
        _write(folder / store.SEEDS, seed, run_config(again), **_scores(-1.0, utility, 0.1))
    _write_sequence(folder, run_config(overlay({}, GRUN)))
    return folder


def _write_sequence(folder: Path, config: RunConfig) -> None:
    """Two states of two requests each: what was asked to be forgotten is, the rest is known."""
    write_choice(folder, "in turn", config.to_json(), "top_1", 0.5)
    for made in (1, 2):
        rows = [
            {
                "study": "in turn",
                "method": config.method,
                "benchmark": "authors",
                "forget_split": "forget20",
                "model": "tiny",
                "config_json": config.to_json(),
                "combination": "top_1",
                "gate_threshold": 0.5,
                "request_index": made,
                "request": f"00{made}",
                "evaluated_index": asked,
                "evaluated_request": f"00{asked}",
                "forget_rouge_l_recall": 0.0 if asked <= made else 1.0,
                "requested_rouge_l_recall": 0.1 * made,
                "model_utility": 0.9,
                "open_shares": [1.0 if asked == module else 0.0 for module in range(1, made + 1)],
                "added_parameters": 10,
                "train_seconds": 1.0,
                "eval_seconds": 1.0,
                "created_at": datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=made),
            }
            for asked in (1, 2)
        ]
        write_requests(folder, f"state{made}", rows)


@pytest.fixture(scope="module")
def address(results: Path) -> str:
    page, *_ = write_report(compare(results), results, location(results / "fronts.png"))
    return f"file://{page}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def test_all_of_it_is_drawn_and_nothing_is_fetched(browser: Browser, address: str) -> None:
    """Four runs, of which the first two are on the front of all and LoRA's on its own; the page's own file is all that
    is asked for, and nothing is complained of."""
    browser.open(address)
    drawn = {
        "#fronts .point": 4,
        "#fronts .point.front": 3,
        "#fronts .stairs": 2,
        "#fronts .reference-mark[transform]": 2,
    }
    drawn |= {"#settings .strand": 3, "#triangles .cell": 2, "#confusion .cell": 2, "#curves figure": 4}
    assert {each: browser.eval(f"document.querySelectorAll({each!r}).length") for each in drawn} == drawn
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"] == _REQUEST]
    assert [url for url in asked if not url.startswith("data:")] == [address]
    complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in complaints] == []


_REQUEST = "Network.requestWillBeSent"


def test_a_click_shows_the_run(browser: Browser, address: str, results: Path) -> None:
    """Its scores beside target and retain model, its gates (0.3 on average: the seventh of twenty bars), the difference
    in what it says, and a file and a command that make the same row."""
    browser.open(address)
    browser.click('#fronts .point.front[aria-label*="−1 ·"]')
    assert browser.eval("document.getElementById('run').open")
    assert browser.eval("document.getElementById('run-title').textContent") == "GRUN + NPO"
    cells = browser.eval(
        "[...document.querySelectorAll('dialog tbody tr:first-child')[0].cells].map((c) => c.textContent)"
    )
    assert cells == ["log10 forget quality", "−1.000", "−4.000", "0.000", "more"]
    heights = browser.eval(
        "[...document.querySelectorAll('dialog .bar')].map((bar) => Number(bar.getAttribute('height')))"
    )
    assert [place % 20 for place, height in enumerate(heights) if height] == [6, 6, 6]
    shown = browser.all("dialog pre", "each.textContent")
    config = run_config(yaml.safe_load(shown[0]))
    (row,) = [row for row in store.scan_runs(results).to_dicts() if row["log10_forget_quality"] == -1.0]
    assert (config.run_key, config.to_json()) == (row["run_key"], row["config_json"])
    assert shown[1] == f"grun-bench train {row['run_key']}.yaml --results {results}"
    browser.click("dialog .copied button")
    assert browser.eval("getSelection().toString()").strip() == shown[0].strip()
    assert len(browser.all("dialog .stairs", "each.id")) == 2, "two losses; there is no third, which was always 0"
    browser.click("dialog header button")
    assert not browser.eval("document.getElementById('run').open")


def test_markup_that_a_model_wrote_is_text(browser: Browser, address: str) -> None:
    """The forget question: `carries`, `a` and `saw` were said before as well; the retain question's answer stayed."""
    browser.open(address)
    browser.click("#fronts .point.front")
    said = "document.querySelectorAll('.said')"
    assert browser.eval(f"{said}[0].querySelectorAll('dd')[2].textContent").split() == MARKUP.split()
    assert browser.all("h3 + .said del", "each.textContent")[:1] == ["Ada"]
    assert browser.all("h3 + .said ins", "each.textContent")[:2] == [
        "<script>hacked=1</script><b>Ada</b>",
        "&",
    ]
    assert "the same, word for word" in browser.eval(f"{said}[1].textContent")
    assert browser.eval("window.hacked === undefined && !document.querySelector('dialog b, dialog script')")


def test_the_keyboard_alone(browser: Browser, address: str) -> None:
    """Tab to the front's corners, an arrow to the next point, Enter opens, Escape leads back to where one was."""
    browser.open(address)
    for _ in range(40):
        browser.press("Tab")
        if "point" in (browser.focused("class") or ""):
            break
    first = browser.focused("data-run")
    assert first is not None
    browser.press("Enter")
    browser.wait("document.getElementById('run').open")
    assert "run=" in browser.eval("location.hash")
    browser.press("Escape")
    browser.wait("!document.getElementById('run').open")
    assert browser.focused("data-run") == first
    browser.press("ArrowRight")
    assert browser.focused("data-run") not in (None, first)


def test_objectives_are_chosen_from_a_list(browser: Browser, address: str) -> None:
    """Forget ROUGE-L is better for being less: then GRUN's run of 0.1 alone is on its front; the address keeps it."""
    browser.open(address)
    for axis, name in (("y", "forget_rouge_l_recall"), ("x", "train_seconds")):
        select = f"document.getElementById('axis-{axis}')"
        browser.eval(f"{select}.value = '{name}'; {select}.dispatchEvent(new Event('change'))")
    titles = browser.all("#fronts .title", "each.textContent")
    assert titles == ["forget ROUGE-L (less is better)", "train s (less is better)"]
    assert browser.eval("document.querySelectorAll('#fronts .point.front.c0').length") == 1
    browser.ask("Page.reload")
    browser.wait("document.readyState === 'complete' && document.getElementById('axis-x').value === 'train_seconds'")


def test_one_may_be_seen_alone(browser: Browser, address: str) -> None:
    """LoRA alone, LoRA and GRUN, then only what is on a front of its own method."""
    browser.open(address)
    seen = []
    for selector in ('[data-trained="LoRA"]', '[data-trained="GRUN"]', "#on-front"):
        browser.click(selector)
        seen.append(len(browser.all("#fronts .point", "each.id")))
    assert seen == [1, 4, 3]


def test_seeds_are_error_bars(browser: Browser, address: str) -> None:
    """Utilities 0.8, 0.78 and 0.82 of three seeds: mean 0.8, standard deviation 0.02; forget quality has none."""
    browser.open(address)
    words = "GRUN + NPO, 3 seeds: log10 forget quality −1 ± 0, model utility 0.8 ± 0.02"
    assert browser.all(".seeds title", "each.textContent") == [words]
    assert browser.all(".seeds", "each.dataset.run") == ["0"], "the run that was repeated is what a click opens"


@pytest.mark.parametrize(("scheme", "is_light"), [("light", True), ("dark", False)])
def test_on_a_phone_by_day_and_night(browser: Browser, address: str, scheme: str, is_light: bool) -> None:
    """Nothing is wider than 390 pixels but what scrolls by itself; the ground is light or dark, the text the other."""
    browser.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(address)
    assert browser.eval("document.documentElement.scrollWidth") <= 390
    browser.click("#fronts .point.front")
    assert browser.eval("document.getElementById('run').scrollWidth") <= 390
    ground = browser.eval("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(ground) > 200, max(ground) < 60) == (is_light, not is_light)
    browser.ask("Emulation.clearDeviceMetricsOverride")
    browser.ask("Emulation.setEmulatedMedia", features=[])


def test_a_folder_is_watched(results: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The command serves the page; a run that arrives gives another, in a browser by itself; Ctrl-C ends it well."""
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    words = ["-c", "from bench.cli.main import main; main()", "watch", str(folder), "--port", "0"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split(" ")[0]
        before, version = _fetched(f"{address}/"), _fetched(f"{address}/version")
        assert f'"version":"{version}"' in before
        seen = request.getfixturevalue("browser") if CHROMIUM else None
        if seen:
            seen.open(f"{address}/")
            assert len(seen.all("#fronts .point", "each.id")) == 4
        key = _write(folder, 9, run_config(overlay({}, {**GRUN, "adapter.rank": 2})), **_scores(-0.5, 0.85, 0.1))
        last = time.monotonic() + SECONDS
        while _fetched(f"{address}/version") == version and time.monotonic() < last:
            time.sleep(0.1)
        assert (key in before, key in _fetched(f"{address}/")) == (False, True)
        if seen:
            seen.wait("document.querySelectorAll('#fronts .point').length === 5")
            asked = [event["params"]["request"]["url"] for event in seen.events if event["method"] == _REQUEST]
            assert {url for url in asked if not url.startswith("data:")} == {f"{address}/", f"{address}/version"}
            seen.open("about:blank")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            _fetched(f"{address}/", Host="elsewhere.example")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()


def _fetched(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as reply:
        found: str = reply.read().decode()
    return found


def test_what_cannot_be_watched_is_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without runs; a port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, says in (([str(tmp_path)], "RESULTS"), ([str(results), "--port", port], "--port")):
            with pytest.raises(SystemExit) as ended:
                main(["watch", *words])
            assert ended.value.code == 2
            error = capsys.readouterr().err
            assert error.startswith(f"grun-bench: {says}: ")
            assert error.count("\n") == 1


NUM_RUNS, NUM_ITEMS = 1000, 500


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand runs of 500 items, each answered by 300 characters of its own, every setting that is searched another
    one, and sixty scores: the most that such a page has to hold."""
    folder = tmp_path_factory.mktemp("large")
    config = run_config(overlay({}, GRUN))
    _write(folder, 0, run_config(overlay({}, {**MODEL, "adapter": "none"})), **_scores(-4.0, 0.9, 1.0))
    target = store.scan_runs(folder).to_dicts()[0]
    splits = ["forget"] * 40 + ["retain"] * (NUM_ITEMS - 40)
    items = [item_row(split=split, item_index=n, question=f"{n}?", gate=[0.1]) for n, split in enumerate(splits)]
    store.write_run(folder, target, [row | {"generation": "Ada carries a saw"} for row in items])
    given = pa.Table.from_pylist(items, schema=TABLES["items"])
    runs = []
    with pq.ParquetWriter(folder / "items" / f"{store.COMPACT}1.parquet", given.schema) as writer:
        for number in range(NUM_RUNS):
            key = f"{number:016d}"
            said = pa.array([f"{key} {n} {'who was born there ' * 15}" for n in range(NUM_ITEMS)])
            own = given.set_column(given.schema.names.index("generation"), "generation", said)
            keys = pa.array([key] * NUM_ITEMS)
            writer.write_table(own.set_column(given.schema.names.index("run_key"), "run_key", keys).cast(given.schema))
            settings = config.to_dict()
            searched = {"adapter": ("learning_rate", "gate_weight", "gate_threshold"), "training": ("retain_weight",)}
            for section, names in searched.items():
                settings[section] |= dict.fromkeys(names, 0.123456789 + number / 3333)
            scores = dict.fromkeys(METRICS[:60], 0.123456789 + number / 3333)
            same = {"method": "grun+npo", "adapter": "grun", "config_json": json.dumps(settings, sort_keys=True)}
            runs.append({**target, **same, **scores, "run_key": key, "gate_threshold": 0.5})
    pq.write_table(pa.Table.from_pylist(runs, schema=TABLES["runs"]), folder / "runs" / f"{store.COMPACT}1.parquet")
    return folder


@pytest.fixture(scope="module")
def made(large: Path) -> tuple[Path, float]:
    """Its page, and the seconds of CPU that it took."""
    started = time.process_time()
    page, *_ = write_report(compare(large), large, location(large / "fronts.png"))
    return Path(str(page)), time.process_time() - started


def test_a_thousand_runs_are_one_page(made: tuple[Path, float]) -> None:
    """At most 5 MB, made in at most ten seconds of CPU."""
    page, seconds = made
    assert seconds < 10
    assert 1e6 < page.stat().st_size < 5e6


def test_a_thousand_runs_are_opened_at_once(made: tuple[Path, float], browser: Browser) -> None:
    """Within three seconds all points can be clicked on."""
    started = time.monotonic()
    browser.open(f"file://{made[0]}")
    assert len(browser.all("#fronts .point", "each.id")) == NUM_RUNS
    assert time.monotonic() - started < 3
