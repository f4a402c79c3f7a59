"""A capture on the simulated device: sees every operator, executes none of them for real.

As on a device, a capture reads and writes no memory of the user's: operators run on *shadows*,
copies that are thrown away, only to learn what they return. Results lie in the pool and hold
poison until a replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.graph.composite import composite_kernel
from piecewise_core.testing.simulated.device import Device, Stream
from piecewise_core.testing.simulated.frozen import Frozen, Layout, unseen
from piecewise_core.testing.simulated.modestack import push_below, take_out
from piecewise_core.testing.simulated.ordering import Ordering, spans
from piecewise_core.testing.simulated.pool import Block, Pool
from piecewise_core.testing.simulated.recording import Operation, Recording
from piecewise_core.testing.simulated.shadows import Shadows, is_written
from piecewise_core.testing.simulated.waits import waits_for_device
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.dispatcher import TorchDispatchMode
from piecewise_core.torch_compat.operators import HigherOrderOperator, changes_itself, schema_of
from piecewise_core.torch_compat.storages import generator_key, storage_key

__all__ = ["Capture"]

_ALLOCATES = ("aten::empty", "aten::new_empty")


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One capture that runs.

    ``drop``: an operator ("aten.add.Tensor") that is silently not recorded, as by a device that
    lies. ``generators``: what replays advance beside the default generator; None where the device
    cannot advance any.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        device: Device,
        pool: Pool,
        stream: Stream,
        *,
        drop: str | None,
        generators: Iterable[torch.Generator] | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stream = stream
        self.spoiled = False
        self.order = Ordering(stream)
        self.recording = Recording()
        self._device = device
        self._pool = pool
        self._drop = drop
        self._known = None
        if generators is not None:
            self._known = {_identity(g) for g in (torch.default_generator, *generators)}
        self._drawn: dict[int, tuple[torch.Generator, torch.Tensor]] = {}
        self._shadows = Shadows(device.memory)

    def takes(self, stream: Stream) -> bool:
        """Whether the capture has taken ``stream`` in."""
        return stream in self.order.streams

    def wait(self, stream: Stream, other: Stream) -> None:
        """Have ``stream`` go on behind ``other``, which takes it in."""
        if self.takes(other):
            self.order.wait(stream, other)
        elif self.takes(stream):
            what = f"to wait for {other}, outside of the capture,"
            self._device.forbid_in_capture(what, "Wait for it before.")

    def begin(self) -> None:
        """Start to see operators."""
        self._restore_later(torch.default_generator)
        self._pool.freed_in_capture = self.recording.steps.append
        push_below(self)

    def end(self) -> Recording:
        """Stop; generators are as they were at the begin."""
        take_out(self)
        self._pool.freed_in_capture = None
        for generator, state in self._drawn.values():
            generator.set_state(state)
        if self._known is None:
            self.recording.random = tuple(self._drawn.values())
        return self.recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record one operator and return what it will return."""
        kwargs, name = kwargs or {}, str(func)
        if name != self._drop and not isinstance(func, HigherOrderOperator):
            # Composite operators arrive whole under inference mode; a device sees kernels.
            with self:
                result = _parts(func, args, kwargs)
            if result is not NotImplemented:
                return result
        with unseen():
            self._check(func, args, kwargs)
            self._shadows.prepare(func, args, kwargs)
            given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            views = [self._shadows.of(t) for t in given]
            ran_args, ran_kwargs = _replaced((args, kwargs), views)
            ran = func(*ran_args, **ran_kwargs)
            if isinstance(ran, torch.Tensor) and ran.is_meta:
                return ran  # a layout that was asked for
            if changes_itself(func):
                self._reshape(func, args, kwargs)
                return args[0]
            blocks: dict[int, Block] = {}
            result = self._results(ran, given, views, blocks)
            if schema_of(func).name == "aten::lift_fresh":
                # A number that Python made a tensor of, ``x[i] = 3.0``; to kernels it is a number.
                self.recording.numbers.append(given[0])
            if name != self._drop and _has_work(func, ran, blocks):
                self._order(func, args, kwargs, blocks)
                self._record(func, args, kwargs, blocks)
            return result

    def _reshape(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Change the sizes or strides of a tensor object, which is nothing to a device."""
        storage = args[0].untyped_storage()
        before = storage_key(storage), storage.nbytes(), storage.data_ptr()
        func(*args, **kwargs)
        storage = args[0].untyped_storage()
        if (storage_key(storage), storage.nbytes(), storage.data_ptr()) != before:
            self._device.forbid_in_capture(
                f"{func} to other memory", "Make a new tensor, or add the op to splitting_ops."
            )

    def _check(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse what a device refuses in a capture."""
        if waits_for_device(func, args, kwargs, self.recording.numbers):
            self._device.forbid_in_capture(
                str(func), "Its result decides what the host does next: add it to splitting_ops."
            )
        if not self.takes(self._device.stream):
            self._device.forbid_in_capture(
                f"{func} on {self._device.stream}",
                "It runs on a stream that was not joined to the captured one: add the op that "
                "uses streams of its own to splitting_ops.",
            )
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Generator):
                if self._known is not None and _identity(leaf) not in self._known:
                    self._device.forbid_in_capture(
                        f"{func} with a generator that is not registered with the graph",
                        "Draw from the default generator, or add the op to splitting_ops.",
                    )
                self._restore_later(leaf)

    def _results(
        self,
        ran: Any,
        given: list[torch.Tensor],
        views: list[torch.Tensor],
        blocks: dict[int, Block],
    ) -> Any:
        """What ``ran`` stands for: tensors given, views of them, or tensors in new ``blocks``."""
        same = {id(view): real for view, real in zip(views, given, strict=True)}
        memory = {
            view.untyped_storage().data_ptr(): real.untyped_storage()
            for view, real in zip(views, given, strict=True)
        }
        plain = {
            view.untyped_storage().data_ptr()
            for view, real in zip(views, given, strict=True)
            if not real.is_inference()
        }
        place = -1

        def real(leaf: Any) -> Any:
            nonlocal place
            place += 1
            if not isinstance(leaf, torch.Tensor) or leaf.untyped_storage().nbytes() == 0:
                return leaf
            if id(leaf) in same:
                return same[id(leaf)]
            storage = leaf.untyped_storage()
            if storage.data_ptr() not in memory:
                block, memory[storage.data_ptr()] = self._pool.allocate(
                    storage.nbytes(), leaf.dtype, self._device.stream
                )
                block.shadow = storage
                blocks[place] = block
            return Layout.of(leaf).over(
                memory[storage.data_ptr()], plain=storage.data_ptr() in plain
            )

        return pytree.tree_map(real, ran)

    def _order(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], blocks: dict[int, Block]
    ) -> None:
        """Refuse what a device may do at the same time as what it depends on, or spoils."""
        reads, writes = spans(func, args, kwargs)
        writes += [(b.address, b.address + b.nbytes) for b in blocks.values()]
        other = self.order.work(self._device.stream, reads, writes)
        if other is not None:
            self._device.forbid_in_capture(
                f"{func} on {self._device.stream} at the same time as {other}",
                "Join the streams first, and let go of no memory that another stream still reads.",
            )

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], blocks: dict[int, Block]
    ) -> None:
        if schema_of(func).name.startswith(_ALLOCATES):
            return
        frozen_args, frozen_kwargs = pytree.tree_map_only(
            torch.Tensor, lambda t: Frozen(t, self._device.memory), (args, kwargs)
        )
        self.recording.steps.append(Operation(func, frozen_args, frozen_kwargs, blocks))

    def _restore_later(self, generator: torch.Generator) -> None:
        if _identity(generator) not in self._drawn:
            self._drawn[_identity(generator)] = generator, generator.get_state()


def _parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run what a composite operator consists of; NotImplemented for any other.

    The kernel that devices run, where there is one: ``decompose`` prefers torch's Python twin, in
    which a dropout that drops nothing is a copy and not its input.
    """
    return (composite_kernel(func) or func.decompose)(*args, **kwargs)


def _identity(generator: torch.Generator) -> int:
    """What two Python objects of one generator share; the dispatcher makes new ones."""
    return int(generator_key(generator))


def _replaced(tree: Any, tensors: list[torch.Tensor]) -> Any:
    """``tree`` with its tensors replaced by ``tensors``, in order."""
    following = iter(tensors)
    return pytree.tree_map_only(torch.Tensor, lambda _: next(following), tree)


def _has_work(func: Any, ran: Any, blocks: dict[int, Block]) -> bool:
    """Whether ``func`` does more than to make views of what it was given."""
    if blocks or any(is_written(argument) for argument in schema_of(func).arguments):
        return True
    return not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(ran))
