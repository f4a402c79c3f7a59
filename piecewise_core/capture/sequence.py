"""What one captured size does, in order: graphs, and operators between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.loose import Loose
from piecewise_core.capture.opsteps import Step, op_step
from piecewise_core.torch_compat import pytree

__all__ = ["OpCall", "StepSequence"]


@dataclass
class OpCall:
    """A splitting op as it was called, and the static buffers that take its results.

    ``around``: puts back around a function what was in force. ``alone``: whether it returns a
    tensor, rather than something that holds tensors. ``form``: as of ``form_of``.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None
    alone: bool
    form: list[Any]
    buffers: list[torch.Tensor | None] = field(default_factory=list)

    def steps(
        self,
        weak: Callable[[torch.Tensor], torch.Tensor],
        kernel: Callable[..., Callable[..., Any] | None],
        strict: bool,
    ) -> tuple[Step, Step]:
        """The call as a step; and the same with the operator's kernel, where it has one."""
        args = tuple(
            [weak(v) if isinstance(v, torch.Tensor) else _mapped(v, weak) for v in self.args]
        )
        kwargs = {name: _mapped(value, weak) for name, value in self.kwargs.items()}
        buffers = [weak(b) if isinstance(b, torch.Tensor) else _empty(b) for b in self.buffers]
        form = self.form if strict else None
        step = partial(
            op_step, args=args, kwargs=kwargs, buffers=buffers, alone=self.alone, form=form
        )
        if self.around is not None:
            # What is in force may make the dispatcher do more than to call the kernel.
            inside = step(self.around(self.fn))
            return inside, inside
        found, own = step(self.fn), kernel(self.fn, args, kwargs)
        return found, found if own is None else step(own)


class StepSequence(list[Any]):
    """Graphs, opaque, and OpCalls. ``replays``: ids of the steps that are replays, once made."""

    replays: frozenset[int] = frozenset()

    def steps(
        self,
        replayer: Callable[[Any], Step],
        weak: Callable[[torch.Tensor], torch.Tensor],
        kernel: Callable[..., Callable[..., Any] | None] = lambda fn, args, kwargs: None,
        *,
        strict: bool = False,
    ) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """What to do at every call; and the same with operators' kernels called directly.

        ``weak``: a tensor over the same memory that may be freed. ``kernel(fn, args, kwargs)``:
        what may be called in place of a splitting op. ``strict``: steps check that operators
        return what they did when captured.
        """
        found: list[Step] = []
        direct: list[Step] = []
        replays: list[int] = []
        for item in self:
            if isinstance(item, OpCall):
                one, other = item.steps(weak, kernel, strict)
            else:
                one = other = replayer(item)
                replays.append(id(one))
            found.append(one)
            direct.append(other)
        self.replays = frozenset(replays)
        return tuple(found), tuple(direct)


def _empty(buffer: Any) -> Any:
    """``buffer``, without what the capture left in it."""
    if isinstance(buffer, Loose):
        buffer.release()
    return buffer


def _mapped(value: Any, weak: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` with its tensors replaced; most are tensors, which a tree takes long to find."""
    if isinstance(value, torch.Tensor):
        return weak(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return pytree.tree_map_only(torch.Tensor, weak, value)
