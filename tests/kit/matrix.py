"""The tests on every torch that pip can have for this Python, each in an environment of its own.

    python matrix.py                                    # every release from 2.11 on
    python matrix.py --only 2.14 --tests tests/unit/test_ranges.py

Where a release has no build for the CPU alone, its CUDA build is installed without CUDA's
libraries, with stand-ins (cuda_standins.py), and the table says so. An environment is removed
when its tests have run. Results go to OUT/matrix.jsonl as they come: a run that was stopped goes
on with the releases that are left. A download is about 0.6 GB for each release.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cuda_standins
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
OLDEST = Version("2.11")
CUDA = re.compile(r"(nvidia|cuda)-")


class NotInstalled(Exception):
    """This release could not be installed or imported here; its text is why."""


def main() -> int:
    """Test what is not done yet; 1 unless every release was tested and passed."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that environments are removed
    asked.out.mkdir(parents=True, exist_ok=True)
    results = asked.out / "matrix.jsonl"
    if asked.fresh:
        results.unlink(missing_ok=True)
    wanted = [v for v in releases() if not asked.only or any(_is(v, only) for only in asked.only)]
    if not wanted:
        print(f"pip has no torch that is {' or '.join(asked.only or ['2.11 or newer'])}")
        return 1
    print(f"torch {', '.join(wanted)}; results in {results}")
    for version in wanted:
        if not [r for r in _newest(results, version, asked.tests) if r["state"] == "tested"]:
            row = {"torch": version, "tests": asked.tests} | tested(version, asked)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    rows = [row for v in wanted for row in _newest(results, v, asked.tests)]
    print(table(rows))
    passed = [row["torch"] for row in rows if row["state"] == "tested" and not row["failed"]]
    print(json.dumps({"torch": wanted, "passed": passed, "tests": asked.tests}))
    return int(passed != wanted)


def _arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, default=ROOT / "build/matrix", help="where results lie")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument(
        "--only", nargs="*", metavar="VERSION", help="these: 2.14.1, or all of 2.14"
    )
    parser.add_argument("--tests", nargs="*", default=["tests"], metavar="PATH", help="these tests")
    parser.add_argument("--workers", default="auto", help="pytest's processes (auto)")
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    return asked


def releases() -> list[str]:
    """Every release from OLDEST on, oldest first; the build for the CPU where there is one."""
    said = _run([sys.executable, "-m", "pip", "index", "versions", "torch"])
    listed = re.search(r"^Available versions: (.*)$", said, re.MULTILINE)
    if listed is None:
        raise NotInstalled(f"pip names no versions of torch:\n{said}")
    builds: dict[str, str] = {}
    for version in sorted(map(Version, listed[1].split(", "))):
        if version >= OLDEST and version.local in (None, "cpu"):
            builds[version.public] = str(version)  # "+cpu" comes behind the bare release
    return list(builds.values())


def tested(version: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Install ``version``, run the tests, remove the environment; what came of it."""
    home = asked.out / f"torch-{version}"
    shutil.rmtree(home, ignore_errors=True)
    begun = time.time()
    try:
        print(f"{version}: installing", end=" ", flush=True)
        python, build = installed(version, home)
        print(f"({build}), {time.time() - begun:.0f} s; testing", end=" ", flush=True)
        row = {"state": "tested", "build": build} | _tests(python, version, asked)
    except (NotInstalled, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        row = {"state": "not tested", "reason": reason[-2000:]}
    finally:
        if not asked.keep:
            shutil.rmtree(home, ignore_errors=True)
    print(f"... {row['state']}, {time.time() - begun:.0f} s", flush=True)
    return row | {"seconds": round(time.time() - begun), "commit": _commit()}


def installed(version: str, home: Path) -> tuple[Path, str]:
    """An environment with ``version`` and all that is pinned; its Python, and what build it is."""
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
    try:
        _run([*pip, "--no-cache-dir", f"torch=={version}"])
    except subprocess.CalledProcessError as error:
        if "ResolutionImpossible" not in error.stderr:
            raise
        raise NotInstalled(
            "a constraint in pip's settings rules it out: pip config list"
        ) from error
    (site,) = (home / "lib").glob("python*/site-packages")
    (torch,) = (d for d in distributions(path=[str(site)]) if d.name == "torch")
    asks = _asks(torch)
    pins = home / "pins.txt"
    triton = [f"{r.name}{r.specifier}" for r in asks if r.name == "triton"]
    pins.write_text("\n".join(_pins(without={"torch", "triton"} if triton else {"torch"})))
    _run([*pip, "-r", str(pins), *triton])
    projects = [ROOT, *(p.parent for p in sorted(ROOT.glob("platforms/*/pyproject.toml")))]
    _run([*pip, "--no-build-isolation", *(word for p in projects for word in ("-e", str(p)))])
    build = "cpu"
    if any(CUDA.match(r.name) for r in asks):
        made = cuda_standins.make(site / "torch" / "lib")
        build = f"CUDA build with stand-ins for {len(made)} libraries"
    _run([str(python), "-c", "import torch; torch.ones(2) + 1"])
    return python, build


def _asks(torch: Distribution) -> list[Requirement]:
    """What ``torch`` requires on this machine."""
    every = map(Requirement, torch.requires or ())
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]


def _pins(without: set[str]) -> list[str]:
    """The lines of constraints.txt, which names all that the tests need, less these packages."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return [line for line in pins if Requirement(line).name not in without]


def _tests(python: Path, version: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Run pytest; how many passed, failed and were skipped, and the names of those that failed."""
    report, log = asked.out / f"{version}.xml", asked.out / f"{version}.log"
    options = ["-q", "-n", asked.workers, "-p", "no:cacheprovider", f"--junitxml={report}"]
    report.unlink(missing_ok=True)
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            [str(python), "-m", "pytest", *options, *asked.tests],
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1"} | environ,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if not report.exists():
        raise NotInstalled(f"pytest gave no report:\n{log.read_text(encoding='utf-8')[-1500:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {
        "passed": len(cases) - len(bad) - skipped,
        "failed": len(bad),
        "skipped": skipped,
        "failures": sorted(f"{c.get('classname')}::{c.get('name')}" for c in bad),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a release, and the names of what failed."""
    lines = [f"{'torch':12} {'passed':>6} {'failed':>6} {'skipped':>7}  build"]
    for row in rows:
        if row["state"] == "tested":
            counts = f"{row['passed']:6} {row['failed']:6} {row['skipped']:7}"
            lines.append(f"{row['torch']:12} {counts}  {row['build']}")
            lines += [f"{'':12} failed: {name}" for name in row["failures"][:10]]
        else:
            lines.append(f"{row['torch']:12} not tested: {row['reason'].splitlines()[-1]}")
    return "\n".join(lines)


def _newest(results: Path, version: str, tests: list[str]) -> list[dict[str, Any]]:
    """The newest row of ``version`` with these tests, if there is one."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [r for r in rows if (r["torch"], r["tests"]) == (version, tests)][-1:]


def _is(version: str, only: str) -> bool:
    return version.split("+")[0] == only or version == only or version.startswith(f"{only}.")


def _commit() -> str:
    return _run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
