"""The wheels as a user installs them: core and a platform in an empty environment.

    python installed_wheels.py --dist ../../dist

Core alone names what is missing; with the platform the README's example runs, and a bundle that
one process saved is served by another; uninstalling leaves nothing of the platform; and versions
that do not fit say so. The environment is temporary, and pinned by constraints.txt.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import torch, piecewise_core as pw
config = pw.Config(dynamic={"input": {0: pw.Dim("rows", 1, 64)}},
                   splitting_ops=("torch.nn.functional.softmax",))
torch.manual_seed(0)
layers = torch.nn.Linear(8, 8), torch.nn.Softmax(-1), torch.nn.Linear(8, 8)
model = torch.nn.Sequential(*layers).eval()
"""
NEXT_API = r"API_VERSION = \(\d+, \d+\)", "API_VERSION = (2, 0)"
SERVE = """
import sys
assert pw.__file__.startswith(sys.prefix), pw.__file__
torch.manual_seed(1)
with torch.inference_mode():
    for rows in (1, 5, 64):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(served(x), model(x), rtol=1e-4, atol=1e-5)
"""
SAVE = """
with torch.inference_mode():
    served = pw.compile(model, config)
    served.warmup(torch.randn(4, 8), progress=False)
    served.save("model.pwb")
"""
LOAD = """
served = pw.load("model.pwb", model)
served.seal()
"""
NOTHING_MADE = "made = served.stats(); assert made.graphs == made.compilations == 0, made"


class Failed(Exception):
    """A step did not do what it must; its text is what was expected and what was seen."""


class Environment:
    """A virtual environment in ``folder``, and what runs in it, away from the checkout."""

    def __init__(self, folder: Path, constraints: Path) -> None:
        self.python = folder / "env" / "bin" / "python"
        self._pins = ["-c", str(constraints)]
        self._cwd = folder / "elsewhere"
        self._cwd.mkdir()
        own = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if name not in own and not name.startswith("PIECEWISE_")
        }
        self._environ["PIECEWISE_CACHE_DIR"] = str(folder / "cache")
        self._environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)

    def run(self, *command: object, fails: bool = False) -> str:
        """What ``command`` prints. Raises Failed unless it succeeds, or fails where it must."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=self._cwd, env=self._environ, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        if (done.returncode != 0) is not fails:
            how = "succeeded" if fails else f"ended with {done.returncode}"
            raise Failed(f"{' '.join(words)[:200]} {how}:\n{said}")
        return said

    def code(self, text: str, fails: bool = False) -> str:
        return self.run(self.python, "-c", text, fails=fails)

    def pip(self, command: str, *arguments: object, fails: bool = False) -> str:
        pins = self._pins if command == "install" else ["-y"]
        return self.run(self.python, "-m", "pip", "-q", command, *pins, *arguments, fails=fails)

    def doctor(self, fails: bool = False) -> str:
        return self.run(self.python.parent / "piecewise", "doctor", fails=fails)


def expect(said: str, *parts: str) -> None:
    """Raise Failed unless every one of ``parts`` stands in ``said``, however it is wrapped."""
    text = " ".join(said.split())
    missing = [part for part in parts if part not in text]
    if missing:
        raise Failed(f"expected {missing} in:\n{said}")


class Course:
    """The steps, in order; each takes the environment as the one before left it."""

    def __init__(self, folder: Path, core: Path, cpu: Path) -> None:
        self.folder, self.core, self.cpu = folder, core, cpu
        self.env = Environment(folder, ROOT / "constraints.txt")

    def core_alone(self) -> None:
        """core into an empty environment (torch is the largest download)"""
        self.env.pip("install", self.core)
        self.no_platform()

    def no_platform(self) -> None:
        """core alone names the error and what to install"""
        said = self.env.code(COMPILE + "pw.compile(model, config)", fails=True)
        expect(said, "NoPlatform: ", "pip install piecewise-cpu", "no piecewise plugin")
        expect(self.env.doctor(fails=True), "No active platform: ", "pip install piecewise-cpu")

    def platform(self) -> None:
        """the cpu platform beside it: doctor computes"""
        self.env.pip("install", self.cpu)
        expect(self.env.doctor(), "The active platform computes.")

    def readme(self) -> None:
        """the README's example"""
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        expect(self.env.code(example), "[1, 32]", "[33, 512]")

    def bundle(self) -> None:
        """a bundle, saved by one process and served by another"""
        self.env.code(COMPILE + SAVE + SERVE)
        self.env.code(COMPILE + LOAD + SERVE + NOTHING_MADE)

    def uninstall(self) -> None:
        """the platform uninstalled: nothing of it left, and core names the error again"""
        self.env.pip("uninstall", "piecewise-cpu")
        left = [*self.env.python.parents[1].rglob("piecewise_cpu*")]
        if left:
            raise Failed(f"left behind: {', '.join(map(str, left))}")
        self.no_platform()

    def misfits_refused(self) -> None:
        """pip refuses a platform of another version of core"""
        newer = self.rebuilt(ROOT, *NEXT_API)
        said = self.env.pip("install", newer, self.cpu, fails=True)
        expect(said, "Cannot install piecewise-core 99.0.0", "piecewise-cpu==0.1.0")

    def newer_core(self) -> None:
        """a core that is too new, installed all the same"""
        newer = self.rebuilt(ROOT, *NEXT_API)
        self.env.pip("install", "--no-deps", newer, self.cpu)
        self.mismatch("piecewise-cpu 0.1.0", "update piecewise-cpu")

    def newer_platform(self) -> None:
        """a platform that is too new for core"""
        newer = self.rebuilt(ROOT / "platforms" / "cpu", r"\(1, \d+\), probe", "(1, 99), probe")
        self.env.pip("install", "--no-deps", self.core, newer)
        self.mismatch("piecewise-cpu 99.0.0", "update piecewise-core")

    def mismatch(self, *parts: str) -> None:
        """Asked for by name it is ApiVersionMismatch; by default no platform, and why."""
        asked = self.env.code(COMPILE + "pw.compile(model, config, platform='cpu')", fails=True)
        expect(asked, "ApiVersionMismatch: ", "was written for plugin API", *parts)
        default = self.env.code(COMPILE + "pw.compile(model, config)", fails=True)
        expect(default, "NoPlatform: ", *parts)
        expect(self.env.doctor(fails=True), "No active platform: ", *parts)

    def rebuilt(self, project: Path, pattern: str, replacement: str) -> Path:
        """A wheel of ``project`` at version 99.0.0 whose API version is another."""
        copy = self.folder / f"{project.name}-99"
        if not copy.exists():
            parts = {"piecewise_core", "src", "pyproject.toml", "README.md", "LICENSE"}
            copy.mkdir()
            for part in (p for p in project.iterdir() if p.name in parts):
                (shutil.copytree if part.is_dir() else shutil.copy)(part, copy / part.name)
            substitute([copy / "pyproject.toml"], r'^version = ".*"', 'version = "99.0.0"')
            substitute(copy.rglob("*.py"), pattern, replacement)
            build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy]
            subprocess.run([sys.executable, *build], check=True, capture_output=True)
        (wheel,) = (copy / "dist").glob("*.whl")
        return wheel


def substitute(files: Iterable[Path], pattern: str, replacement: str) -> None:
    """Replace ``pattern``, which stands once in all of ``files``."""
    times = 0
    for file in files:
        text, here = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
        if here:
            file.write_text(text)
        times += here
    if times != 1:
        raise Failed(f"{pattern!r} stands {times} times, not once")


def the_wheel(dist: Path, name: str) -> Path:
    wheels = sorted(dist.glob(f"{name}-*.whl"))
    if len(wheels) != 1:
        raise Failed(f"{dist} has {len(wheels)} wheels of {name}, not one; run `make wheels` first")
    return wheels[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the wheels lie")
    parser.add_argument("--keep", action="store_true", help="leave the environment, and say where")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    folder = Path(tempfile.mkdtemp(prefix="piecewise-wheels-"))
    try:
        wheels = [the_wheel(options.dist.resolve(), f"piecewise_{n}") for n in ("core", "cpu")]
        course = Course(folder, *wheels)
        steps = [
            course.core_alone,
            course.platform,
            course.readme,
            course.bundle,
            course.uninstall,
            course.misfits_refused,
            course.newer_core,
            course.newer_platform,
        ]
        for number, step in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {step.__doc__}", end=" ", flush=True)
            begun = time.perf_counter()
            step()
            print(f"... ok, {time.perf_counter() - begun:.0f} s", flush=True)
    except Failed as failure:
        print(f"... FAILED\n{failure}")
        return 1
    finally:
        print(f"kept: {folder}") if options.keep else shutil.rmtree(folder)
    print(f"{wheels[0].name} and {wheels[1].name} work as installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
