"""Pieces as tracing and splitting really make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sympy
import torch

import piecewise_core as pw
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.split import Piece, split
from piecewise_core.graph.trace import trace
from piecewise_core.runtime.parameters import Parameters

SPLIT = ("torch.nn.functional.softmax",)


@dataclass(frozen=True)
class Pieces:
    """The compilable pieces of a function, cut at softmax, and the symbols in them."""

    config: pw.Config
    compilable: tuple[Piece, ...]
    symbols: dict[sympy.Symbol, int]


@pytest.fixture(scope="session")
def pieces_of() -> Callable[..., Pieces]:
    """``pieces_of(fn, *examples, dynamic={...})``."""

    def make(
        fn: Callable[..., Any], *args: Any, dynamic: dict[Any, Any], **settings: Any
    ) -> Pieces:
        config = pw.Config(dynamic=dynamic, splitting_ops=SPLIT, compiler="eager", **settings)
        structure = describe_call(fn, args, {}, config)
        with torch.no_grad():
            traced = trace(fn, structure, config, config.bounds, Parameters(()).add)
            program = split(traced, Matcher(config.splitting_ops))
        return Pieces(config, program.compilable, dict(traced.symbols))

    return make
