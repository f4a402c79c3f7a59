"""Functions traced and split for real, without a session around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import piecewise_core as pw
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.split import Program, split
from piecewise_core.graph.trace import Traced, trace
from piecewise_core.runtime.parameters import Parameters

ROWS = {"x": {0: pw.Dim("rows", 0, 64)}}


@pytest.fixture
def traced() -> Callable[..., Traced]:
    """``traced(fn, *examples, dynamic=...)``."""

    def make(
        fn: Callable[..., Any], *args: Any, dynamic: Any = None, keywords: Any = None, **given: Any
    ) -> Traced:
        config = pw.Config(dynamic=ROWS if dynamic is None else dynamic, **given)
        structure = describe_call(fn, args, keywords or {}, config)
        with torch.no_grad():
            return trace(fn, structure, config, config.bounds, Parameters(()).add)

    return make


@pytest.fixture
def program(traced: Callable[..., Traced]) -> Callable[..., Program]:
    """``program(fn, *examples, cut=(...), dynamic=...)``."""

    def make(fn: Callable[..., Any], *args: Any, cut: Any = (), **given: Any) -> Program:
        return split(traced(fn, *args, **given), Matcher(cut))

    return make
