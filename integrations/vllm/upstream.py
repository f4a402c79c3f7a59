"""vLLM's own tests of compilation, from its source distribution, with the plugin and without it.

``python integrations/vllm/check.py --upstream``. Nothing of them is kept in this repository: the
archive is downloaded into build/vllm-source, and its tests are put into a form for a CPU there
(``CPU_FORM``). A test that passes with the plugin has passed. One that does not is not applicable
where what it says is in ``REASONS``; else it has failed, whatever vLLM does by itself.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["Outcome", "outcomes", "show", "source", "tested"]

VERSION = "0.32.0"
BUILDS_WITH = ("setuptools<81", "setuptools-scm", "setuptools-rust", "wheel", "jinja2", "cmake")
"""pip asks the archive's setup.py for its dependencies before it lets the archive be had."""

TESTED_WITH = ("tblib", "pytest-asyncio", "pytest-forked")

FILES = (
    "compile/test_aot_compile.py",
    "compile/test_codegen.py",
    "compile/test_compile_ranges.py",
    "compile/test_compiler_interface.py",
    "compile/test_config.py",
    "compile/test_decorator.py",
    "compile/test_graph_partition.py",
    "compile/test_structured_logging.py",
    "compile/test_wrapper.py",
    "compile/dynamic_shapes/test_dynamic_shapes_compilation.py",
    "compile/fullgraph/test_multiple_graphs.py",
    "compile/fullgraph/test_simple.py",
    "compile/fullgraph/test_toy_llama.py",
    "compile/passes/test_pass_manager.py",
    "v1/cudagraph/test_cudagraph_dispatch.py",
)
"""Left out: fusions of CUDA kernels, several GPUs, H100s, and models of gigabytes."""

CPU_FORM = (
    (r"\.cuda\(\)", ""),
    (r'set_default_device\("cuda"\)', 'set_default_device("cpu")'),
    (r'device="cuda"', 'device="cpu"'),
    (r"(?m)^ *num_cudagraph_captured=.*,.*\n", ""),
    (r"not torch\.cuda\.is_available\(\)", "False"),
    (r'"facebook/opt-125m"', "__import__('os').environ['PIECEWISE_VLLM_MODEL']"),
)
"""Tensors stay where they are; what is captured is not counted, as vLLM captures nothing there; a
small random model is in the place of one from the hub."""

REASONS = (
    (r"LocalEntryNotFound|HF_HUB_OFFLINE|couldn't connect to|[Oo]ffline", "a model from the hub"),
)
"""What a test says that cannot run here -> what it needs."""


@dataclass(frozen=True)
class Outcome:
    """How a test ended: "passed", "failed" or "skipped", and what it said last."""

    kind: str
    said: str = ""


def source(pip: list[str], home: Path, run: Callable[..., str]) -> Path:
    """Get vLLM's tests in a form for a CPU, under ``home``; downloaded once."""
    folder = home / VERSION
    if not (folder / "tests").exists():
        run([*pip, "install", *BUILDS_WITH, *TESTED_WITH])
        asked = ["download", "--no-deps", "--no-build-isolation", "--no-binary", "vllm"]
        named = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": VERSION}
        run([*pip, *asked, "-d", str(home), f"vllm=={VERSION}"], named)
        with tarfile.open(home / f"vllm-{VERSION}.tar.gz") as archive:
            inside = f"vllm-{VERSION}/tests/"
            wanted = [m for m in archive.getmembers() if m.name.startswith(inside)]
            archive.extractall(home / "unpacked", wanted, filter="data")
        shutil.rmtree(folder, ignore_errors=True)
        (home / "unpacked" / f"vllm-{VERSION}").rename(folder)
    shutil.copytree(folder / "tests", home / "cpu" / "tests", dirs_exist_ok=True)
    for name in FILES:
        file = home / "cpu" / "tests" / name
        text = file.read_text(encoding="utf-8")
        for found, instead in CPU_FORM:
            text = re.sub(found, instead, text)
        file.write_text(text, encoding="utf-8")
    return home / "cpu"


def outcomes(report: Path) -> dict[str, Outcome]:
    """Test -> how it ended, from a report in JUnit's form."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        ends = [e for e in case if e.tag in ("failure", "error", "skipped")]
        if not ends:
            found[name] = Outcome("passed")
            continue
        said = f"{ends[0].get('message') or ''}\n{ends[0].text or ''}".strip()
        kind = "skipped" if ends[0].tag == "skipped" else "failed"
        found[name] = Outcome(kind, said)
    return found


def tested(python: Path, folder: Path, run: Callable[..., str]) -> Iterator[tuple[str, Outcome]]:
    """Each test of each file and how it ended; ``run`` takes a command and where it is to run."""
    for name in FILES:
        report = folder / "report.xml"
        report.unlink(missing_ok=True)
        quiet = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder))
        command = [str(python), "-m", "pytest", *quiet, f"--junitxml={report}", f"tests/{name}"]
        said = run(command, cwd=folder)
        if report.exists():
            yield from outcomes(report).items()
        else:
            yield name, Outcome("failed", "ended without a report: " + said[-300:])


def judged(ours: Outcome) -> tuple[str, str]:
    """Passed, failed or not applicable; and why."""
    if ours.kind == "passed":
        return "passed", ""
    lines = ours.said.splitlines()
    if ours.kind == "skipped":
        return "not applicable", lines[0] if lines else ""
    for pattern, needs in REASONS:
        if re.search(pattern, ours.said):
            return "not applicable", f"needs {needs}"
    return "failed", lines[0] if lines else "no report"


def show(ours: dict[str, Outcome], own: dict[str, Outcome]) -> dict[str, int]:
    """Print a line for each test; returns how many ended how."""
    counts: Counter[str] = Counter()
    for name, outcome in ours.items():
        verdict, why = judged(outcome)
        alone = own.get(name, Outcome("no report")).kind
        counts[verdict] += 1
        counts["passed with vLLM alone"] += alone == "passed"
        print(f"{verdict:15} vLLM alone: {alone:10} {name}  {why[:110]}")
    return dict(counts)
