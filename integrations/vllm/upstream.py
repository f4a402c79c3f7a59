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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["GROUPS", "Outcome", "outcomes", "show", "source", "tested"]

VERSION = "0.32.0"
BUILDS_WITH = ("setuptools<81", "setuptools-scm", "setuptools-rust", "wheel", "jinja2", "cmake")
"""pip asks the archive's setup.py for its dependencies before it lets the archive be had."""

TESTED_WITH = ("tblib", "pytest-asyncio")

FILES = (
    "compile/test_aot_compile.py",
    "compile/test_codegen.py",
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

RANGES = "compile/test_compile_ranges.py"
APART = (
    "test_compile_config_get_compile_ranges",
    "test_compile_ranges",
    "test_compile_sizes_produce_static_shapes",
    "test_inductor_cache_compile_ranges",
)
"""Of RANGES, a process for each: they count what is compiled for equal pieces, which a process
compiles once."""

GROUPS = (FILES, *((f"{RANGES}::{name}",) for name in APART))

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
    (r"LocalEntryNotFound|couldn't connect to|[Oo]ffline", "a model from the hub"),
    (
        r"inductor_graph_partition|(enable_if|decorator)\[True\]"
        r"|(toy_llama|multi_graph_piecewise_compile)\[.*-True\]",
        "Inductor is to cut the graph, which vLLM does not let it do on a CPU",
    ),
    (r"(simple_piecewise_compile|toy_llama)\[", "names another backend than the plugin's"),
)
"""Of a test's name, or what it says -> what it needs that is not here."""


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
    for name in (*FILES, RANGES):
        file = home / "cpu" / "tests" / name
        text = file.read_text(encoding="utf-8")
        for found, instead in CPU_FORM:
            text = re.sub(found, instead, text)
        file.write_text(text, encoding="utf-8")
    return home / "cpu"


def outcomes(report: Path) -> dict[str, Outcome]:
    """Test -> how it ended, from a report in JUnit's form. Names are those that tested() takes."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        parts = case.get("classname", "").split(".")
        module = max(i for i, part in enumerate(parts) if part.startswith("test_"))
        file = "/".join(parts[1 : module + 1]) + ".py"
        name = "::".join([file, *parts[module + 1 :], case.get("name", "")])
        ends = [e for e in case if e.tag in ("failure", "error", "skipped")]
        if not ends:
            found[name] = Outcome("passed")
            continue
        said = f"{ends[0].get('message') or ''}\n{ends[0].text or ''}".strip()
        found[name] = Outcome("skipped" if ends[0].tag == "skipped" else "failed", said)
    return found


def tested(
    python: Path, folder: Path, names: Iterable[str], run: Callable[..., str]
) -> dict[str, Outcome]:
    """Each test of ``names`` and how it ended; ``run`` takes a command and where it is to run."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    quiet = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder))
    named = [f"tests/{name}" for name in names]
    said = run([str(python), "-m", "pytest", *quiet, f"--junitxml={report}", *named], cwd=folder)
    return outcomes(report) if report.exists() else {named[0]: Outcome("failed", said[-300:])}


def judged(name: str, outcome: Outcome) -> tuple[str, str]:
    """Passed, failed or not applicable; and why."""
    if outcome.kind == "passed":
        return "passed", ""
    lines = outcome.said.splitlines() or ["no report"]
    if outcome.kind == "skipped":
        return "not applicable", lines[0]
    for pattern, why in REASONS:
        if re.search(pattern, f"{name}\n{outcome.said}"):
            return "not applicable", why
    return "failed", lines[0]


def show(ours: dict[str, Outcome], alone: dict[str, Outcome]) -> dict[str, int]:
    """Print a line for each test; returns how many ended how. ``alone``: without the plugin."""
    counts: Counter[str] = Counter()
    for name, outcome in sorted(ours.items()):
        verdict, why = judged(name, outcome)
        counts[verdict] += 1
        own = f" [vLLM alone: {alone[name].kind}]" if name in alone else ""
        print(f"{verdict:15}{name}  {why[:120]}{own}")
    return dict(counts)
