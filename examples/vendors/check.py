"""The examples as vendors ship them: installed, held to the conformance kit, serving MiniLM.

``make vendors``. Makes an environment in build/vendors over that of `make setup`, which stays as
it is. Prints one JSON line last; exit status 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = {
    "openvino": (
        "openvino",
        ["--compiler", "openvino", "--xfail", str(HERE / "openvino/xfails.txt")],
    ),
    "onnxruntime": ("onnxruntime", ["--compiler", "onnxruntime"]),
    "tally": ("backend", ["tally", "--level", "L1"]),
    "vulkan": ("vulkan", ["vulkan", "--level", "L1"]),
}
"""Name -> directory, and what the conformance kit is asked."""


class Failed(Exception):
    """A step did not do what it must; the message says what to do."""


def environment(folder: Path) -> Path:
    """The interpreter of an environment that also sees what this one has."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.EnvBuilder(with_pip=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    below = folder / "lib" / version / "site-packages" / "piecewise_setup.pth"
    here = sysconfig.get_path("purelib")
    below.write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    return python


def install(python: Path, names: list[str]) -> None:
    """The pinned packages, and the examples themselves, as wheels. Raises Failed."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    try:
        _run([*pip, "-c", str(ROOT / "constraints.txt"), "-r", str(HERE / "requirements.txt")])
    except Failed as problem:
        raise Failed(
            f"{problem}\nthe packages of examples/vendors/requirements.txt cannot be had from "
            "where pip is set to install; nothing was tested"
        ) from None
    projects = [str(HERE / CASES[name][0]) for name in names]
    _run([*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", *projects])


def check(python: Path, name: str, extra: list[str]) -> dict[str, Any]:
    """The kit, then MiniLM; or why they cannot be run here."""
    if name == "vulkan" and (missing := _no_vulkan(python)):
        _step(f"vulkan: not run: {missing}")
        return {"not run": missing}
    _step(f"{name}: the kit")
    begun = time.perf_counter()
    report = ROOT / "build" / f"vendors-{name}.json"
    command = [str(python), "-m", "piecewise_core.cli.main", "conformance", *CASES[name][1]]
    _run([*command, "--report", str(report)])
    kit = json.loads(report.read_text(encoding="utf-8"))
    counts = {outcome: count for outcome, count in kit["counts"].items() if count}
    _step(f"{name}: {_words(counts)}; MiniLM")
    answer = _run([str(python), str(HERE / "serve.py"), name, *extra])
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    seconds = round(time.perf_counter() - begun, 1)
    return {"level": kit["level"]["reached"], "kit": counts, **found, "seconds": seconds}


def summary(name: str, found: dict[str, Any]) -> str:
    """A line for a reader; the JSON has the rest."""
    if "not run" in found:
        return f"  {name:12} not run: {found['not run']}"
    off = max(found["off"].values())
    said = f"{found['level']}; MiniLM {len(found['off'])} ways, at most {off:.1e} from eager"
    ratios = found.get("ratio_to_own", {})
    if ratios:
        said += "; time to its own " + _words(ratios)
    return f"  {name:12} {said}; {found['seconds']:.0f} s"


def _words(counts: dict[str, Any]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def _no_vulkan(python: Path) -> str:
    """Why there is no Vulkan device; empty where there is one."""
    asked = [str(python), "-c", "import torchvulkan as v; raise SystemExit(not v.is_available())"]
    if not subprocess.run(asked, capture_output=True).returncode:
        return ""
    return "no Vulkan driver (Debian, Ubuntu: apt-get install libvulkan1 mesa-vulkan-drivers)"


def _run(command: list[str]) -> str:
    """Its standard output. Raises Failed with the end of what it said."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIECEWISE_", "PYTHONPATH"))}
    kept |= {"HF_HUB_OFFLINE": "1", "PIECEWISE_TALLY": str(int("tally" in command))}
    done = subprocess.run(command, capture_output=True, text=True, env=kept, cwd=ROOT / "build")
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:].strip()
        raise Failed(f"{' '.join(command[1:])}\nended with {done.returncode}:\n{said}")
    return done.stdout


def _step(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Check the examples that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--batches", default="12", help="of the demo's 40, the smallest first")
    options = parser.parse_args()
    names = options.names or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    try:
        (ROOT / "build").mkdir(exist_ok=True)
        _step("environment in build/vendors")
        python = environment(ROOT / "build" / "vendors")
        install(python, names)
        found = {name: check(python, name, ["--batches", options.batches]) for name in names}
    except Failed as problem:
        sys.exit(f"vendors: {problem}")
    _step("all that ran holds:")
    for name, one in found.items():
        print(summary(name, one), file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
