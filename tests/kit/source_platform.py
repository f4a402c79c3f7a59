"""A platform whose compiled pieces are source code: made in one process, loaded in any other.

Each compilation adds a line to the file that SOURCE_LOG names, its key and its process, and takes
SOURCE_SECONDS.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Capabilities, CompiledGraph, PlatformInfo, Probe


class Runtime:
    """A device without streams; ``facts`` is its fingerprint."""

    def __init__(self, facts=()):
        self.facts = dict(facts)

    def current_stream(self):
        return None

    def new_stream(self):
        return None

    def stream(self, stream):
        return contextlib.nullcontext()

    def synchronize(self):
        return None

    def fingerprint(self):
        return self.facts


class SourceCompiler:
    """Hands over the piece's own source. ``factors``: what it says its code depends on."""

    name = "source"

    def __init__(self, factors=(), passes=()):
        self.factors = dict(factors)
        self.compiled = []
        self.loaded = []
        self._passes = tuple(passes)

    def compile(self, graph, example_inputs, *, key, config):
        self.compiled.append(key)
        if "SOURCE_LOG" in os.environ:
            with open(os.environ["SOURCE_LOG"], "a") as file:
                file.write(f"{key}\t{os.getpid()}\n")
        time.sleep(float(os.environ.get("SOURCE_SECONDS", "0")))
        code = graph.code.encode()
        return CompiledGraph(runner(code), lambda: code)

    def load(self, handle):
        self.loaded.append(handle)
        return CompiledGraph(runner(handle), lambda: handle)

    def hash_factors(self):
        return {**self.factors, "flag": os.environ.get("SOURCE_FLAG", "off")}

    def passes(self):
        return self._passes


def runner(code):
    """The function that ``code`` defines."""
    import torch

    names = {"torch": torch, "device": torch.device, "inf": float("inf"), "nan": float("nan")}
    exec(code, names)
    return lambda *args: names["forward"](None, *args)


class SourcePlatform:
    """The platform; ``compiler`` is a SourceCompiler unless another is given."""

    name = "source"
    device_type = "cpu"

    def __init__(self, compiler=None, facts=(), alignment=1):
        self.device = Runtime(facts)
        self.graphs = None
        self.compiler = compiler or SourceCompiler()
        self.capabilities = Capabilities(alignment=alignment)


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("source", "cpu", (1, 0), lambda: Probe(True, "for tests"), SourcePlatform)


def install(folder: Path) -> None:
    """Make ``folder`` a place whose import path has this module as an installed plugin."""
    info = folder / "piecewise_source-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: piecewise-source\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[piecewise]\nsource = source_platform\n")
