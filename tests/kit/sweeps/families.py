"""Unmodified model families, tiny and with random weights, through every way in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform
from sweeps.judging import same
from sweeps.table import FAMILIES

__all__ = ["WAYS", "Family", "families", "served_by_torch"]

SIZES = ({"batch": 2, "length": 7, "target": 5}, {"batch": 1, "length": 12, "target": 3})
BOUNDS = {
    "batch": pw.Dim("batch", min=1, max=4),
    "length": pw.Dim("length", min=2, max=16),
    "target": pw.Dim("target", min=2, max=8),
}
DEVICE = os.environ.get("PIECEWISE_SWEEP_DEVICE", "")
"""Where models and inputs are, and whose platform serves them; empty for the CPU, where static
graphs are those of the simulated device."""
ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


@dataclass(frozen=True)
class Family:
    """A line of the list; see tests/families/README.md."""

    family: str
    model: str
    config: dict[str, Any]
    inputs: dict[str, Any]

    def is_here(self) -> bool:
        """Whether this transformers has it; the list is of the release that is pinned."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return self.family in CONFIG_MAPPING

    def make(self) -> torch.nn.Module:
        """The model, for inference."""
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        torch.manual_seed(0)
        config = CONFIG_MAPPING[self.family](**self.config)
        built: torch.nn.Module = getattr(transformers, self.model)(config)
        return built.eval().to(DEVICE or "cpu")

    def call(self, sizes: dict[str, int], seed: int) -> dict[str, Any]:
        """Keyword arguments of one call."""
        torch.manual_seed(seed)
        return {name: _value(name, shape, sizes) for name, shape in self.inputs.items()}

    @property
    def dynamic(self) -> dict[str, Any]:
        """What Config.dynamic says of the inputs."""
        return {
            name: {axis: BOUNDS[dim] for axis, dim in enumerate(shape) if isinstance(dim, str)}
            for name, shape in self.inputs.items()
            if isinstance(shape, list)
        }


def families() -> dict[str, Family]:
    """Every family of the list, by name."""
    rows = [json.loads(line) for line in FAMILIES.read_text().splitlines()]
    return {row["family"]: Family(**row) for row in rows}


def _value(name: str, shape: Any, sizes: dict[str, int]) -> Any:
    if not isinstance(shape, list):
        return shape
    real = [sizes[d] if isinstance(d, str) else d for d in shape]
    if name == "attention_mask":
        made = torch.ones(real, dtype=torch.long)
    else:
        made = torch.randint(3, 90, real) if name.endswith("_ids") else torch.randn(real)
    return made.to(DEVICE or "cpu")


def served_by_torch(family: Family) -> bool:
    """Whether torch.compile traces the model to one graph at each size."""
    torch._dynamo.reset()
    fast = torch.compile(family.make(), backend="eager", fullgraph=True, dynamic=True)
    try:
        for sizes in SIZES:
            fast(**family.call(sizes, 0))
    except Exception:
        return False
    return True


def served(family: Family, **settings: Any) -> None:
    """Through pw.compile, cut at attention where there is some."""
    model = family.make()
    platform = settings.pop("platform", DEVICE or "cpu")
    config = {"dynamic": family.dynamic, "compiler": "eager", **settings}
    try:
        fast = pw.compile(model, pw.Config(splitting_ops=(ATTENTION,), **config), platform=platform)
        _everywhere(family, model, fast)
    except pw.errors.NothingToSplit:
        fast = pw.compile(model, pw.Config(**config), platform=platform)
        _everywhere(family, model, fast)
    if config.get("capture_sizes") and not fast.stats().calls["replayed"]:
        dropped = fast.explain()
        raise pw.errors.CaptureFailed(f"nothing was replayed: {str(dropped)[-300:]}")


def captured(family: Family) -> None:
    """Through pw.compile with static graphs, on the simulated device or ``DEVICE``."""
    served(family, platform=_with_graphs(), **_captures(family))


def recorded(family: Family) -> None:
    """Through pw.record, on the simulated device or ``DEVICE``."""
    model = family.make()
    config = pw.Config(dynamic=family.dynamic, splitting_ops=(ATTENTION,), **_captures(family))
    try:
        fast = pw.record(model, config, platform=_with_graphs())
        _everywhere(family, model, fast)
    except pw.errors.NothingToSplit:
        config = config.replace(splitting_ops=())
        fast = pw.record(model, config, platform=_with_graphs())
        _everywhere(family, model, fast)
    if not fast.stats().calls["replayed"]:
        raise pw.errors.CaptureFailed(f"nothing was replayed: {str(fast.explain())[-300:]}")


def door(family: Family) -> None:
    """Through torch.compile's entry point."""
    model = family.make()
    options = {"compiler": "eager"}
    _everywhere(
        family, model, torch.compile(model, backend="piecewise", dynamic=True, options=options)
    )


WAYS: dict[str, Callable[[Family], None]] = {
    w.__name__: w for w in (served, captured, recorded, door)
}


def _with_graphs() -> Any:
    return DEVICE or SimulatedPlatform()


def _captures(family: Family) -> dict[str, Any]:
    named = dict.fromkeys(d.name for dims in family.dynamic.values() for d in dims.values())
    sizes = [tuple(at[name] for name in named) for at in SIZES]
    plain = [s[0] if len(s) == 1 else s for s in sizes]
    return {"capture_sizes": tuple(plain), "capture_max": False}


def _everywhere(family: Family, model: Callable[..., Any], fast: Callable[..., Any]) -> None:
    for seed in range(2):
        for sizes in SIZES:
            call = family.call(sizes, seed)
            copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
            want = _seeded(model, copies)
            same(_seeded(fast, call), want, bounds={"rtol": 1e-4, "atol": 1e-4})


def _seeded(model: Callable[..., Any], call: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    return model(**call)
