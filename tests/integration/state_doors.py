"""The doors through which Python state is tried: compiled, captured and recorded."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}


def plain(fn):
    return pw.compile(fn, pw.Config(dynamic=ROWS, compiler="eager"), platform="cpu")


def captured(fn):
    config = pw.Config(dynamic=ROWS, compiler="eager", capture_sizes=(4,), capture_max=False)
    return pw.compile(fn, config, platform=SimulatedPlatform())


def recorded(fn):
    config = pw.Config(dynamic=ROWS, capture_sizes=(4,), capture_max=False)
    return pw.record(fn, config, platform=SimulatedPlatform())


def torch_compiled(fn):
    torch._dynamo.reset()  # functions made anew share their code, which it compiles 8 times only
    return torch.compile(fn, backend="piecewise", options={"compiler": "eager"})


OWN = pytest.mark.parametrize("door", [plain, captured, recorded])
DOORS = pytest.mark.parametrize("door", [plain, captured, recorded, torch_compiled])


def retraces(fast):
    """How often it was traced anew; Dynamo does not say."""
    return fast.stats().retraces if hasattr(fast, "stats") else 0
