"""Ten ways to run one operator's program; each must give what the program gives as written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform
from sweeps.cases import Case, fresh
from sweeps.judging import same

__all__ = ["PASSES", "served_by_torch"]

Program = Callable[..., Any]


def served_by_torch(case: Case) -> bool:
    """Whether torch.compile traces the program to one graph, for every size."""
    torch._dynamo.reset()
    fast = torch.compile(case.model, backend="eager", fullgraph=True, dynamic=True)
    try:
        for size in case.sizes:
            fast(*fresh(case, size, 0))
    except Exception:
        return False
    return True


def plain(case: Case, home: Path) -> None:
    """Compiled without a compiler, at every size."""
    _everywhere(case, _compile(case.model, case))


def cut(case: Case, home: Path) -> None:
    """Cut at an operator before and one behind, so that inputs and results cross cuts."""

    def program(*tensors: torch.Tensor) -> Any:
        moved = [t.neg().neg() if _is_number(t) else t for t in tensors]
        moved = [torch.abs(t) * torch.sign(t) if t.is_floating_point() else t for t in moved]
        return _again(case.model(*moved))

    _everywhere(case, _compile(program, case, splitting_ops=("torch.abs", "torch.sign")), program)


def views(case: Case, home: Path) -> None:
    """Inputs that are views in another layout; results viewed again."""

    def program(*tensors: torch.Tensor) -> Any:
        turned = [t.movedim(0, -1).clone().movedim(-1, 0) if t.dim() > 1 else t for t in tensors]
        return _again(case.model(*turned))

    _everywhere(case, _compile(program, case), program, layout=True)


def in_place(case: Case, home: Path) -> None:
    """The operator's in-place form, on a value of the program's own."""
    if case.in_place is not None:
        _everywhere(case, _compile(case.in_place, case), case.in_place)


def out(case: Case, home: Path) -> None:
    """The operator's ``out=`` form, into an argument."""
    if case.out is None:
        return
    given = case.out
    fast = pw.compile(given, pw.Config(compiler="eager"), platform="cpu")
    size = case.sizes[0]
    for turn in range(2):
        tensors = fresh(case, size, turn)
        ours, theirs = (torch.zeros_like(case.model(*tensors)) for _ in range(2))
        try:
            want = _seeded(given, (theirs, *(t.clone() for t in tensors)))
        except Exception:  # this sample has no such form
            return
        got = _seeded(fast, (ours, *tensors))
        same((got, ours), (want, theirs), values=not case.random)


def simulated(case: Case, home: Path) -> None:
    """Captured at two sizes on the simulated device, replayed with other numbers."""
    _everywhere(case, _compile(case.model, case, SimulatedPlatform(), **_captured(case)), turns=3)


def padded(case: Case, home: Path) -> None:
    """Padded up to the sample's own size."""
    if case.rows and len(case.sizes) > 1:
        settings = {
            **_captured(case),
            "capture_sizes": (case.sizes[0],),
            "padding": "capture_sizes",
        }
        _everywhere(case, _compile(case.model, case, SimulatedPlatform(), **settings), turns=3)


def recorded(case: Case, home: Path) -> None:
    """Recorded at two sizes on the simulated device."""
    config = pw.Config(dynamic=case.dynamic, **_captured(case))
    fast = pw.record(case.model, config, platform=SimulatedPlatform())
    _everywhere(case, fast, turns=3)


def inductor(case: Case, home: Path) -> None:
    """Compiled by Inductor."""
    _everywhere(case, _compile(case.model, case, compiler="inductor"))


def stored(case: Case, home: Path) -> None:
    """Twice through one store that all operators share."""
    for _ in range(2):
        _everywhere(case, _compile(case.model, case, cache_dir=str(home / "store")))


PASSES: dict[str, Callable[[Case, Path], None]] = {
    p.__name__: p
    for p in (plain, cut, views, in_place, out, simulated, padded, recorded, inductor, stored)
}


def _compile(program: Program, case: Case, platform: Any = "cpu", **settings: Any) -> Program:
    config = pw.Config(**{"dynamic": case.dynamic, "compiler": "eager", **settings})
    return pw.compile(program, config, platform=platform)


def _captured(case: Case) -> dict[str, Any]:
    sizes = tuple(s for s in case.sizes[:2] if s > 0)
    return (
        {"capture_sizes": sizes, "capture_max": False} if case.rows else {"graph_mode": "piecewise"}
    )


def _everywhere(
    case: Case,
    fast: Program,
    program: Program | None = None,
    *,
    turns: int = 2,
    layout: bool = False,
) -> None:
    """Call ``fast`` and the program as written at every size, with equal seeds."""
    written = program or case.model
    for turn in range(turns):
        for size in case.sizes:
            ours = _laid(fresh(case, size, turn), layout)
            theirs = [t.clone() for t in ours]
            try:
                want = _seeded(written, theirs)
            except Exception:  # in this form the operator takes no such call
                continue
            got = _seeded(fast, ours)
            same((got, ours), (want, theirs), values=not case.random)


def _laid(tensors: Sequence[torch.Tensor], layout: bool) -> list[torch.Tensor]:
    if not layout:
        return list(tensors)
    return [t.mT.contiguous().mT if t.dim() > 1 else t for t in tensors]


def _seeded(program: Program, tensors: Sequence[torch.Tensor]) -> Any:
    torch.default_generator.manual_seed(3)  # torch.manual_seed notes the stack each time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program(*tensors)


def _again(result: Any) -> Any:
    """The result, with an operator and a view behind each tensor."""
    if isinstance(result, torch.Tensor):
        return result.neg().unsqueeze(0).squeeze(0) if _is_number(result) else result
    if type(result) in (list, tuple):
        return type(result)([_again(r) for r in result])
    return result


def _is_number(tensor: torch.Tensor) -> bool:
    plain = tensor.layout is torch.strided and not tensor.is_quantized
    return plain and tensor.dtype in (torch.float32, torch.float64, torch.int64, torch.complex64)
