"""The static inputs of captured plans: buffers that graphs read, filled before every replay.

One allocation per tensor input serves every capture size: a smaller size is a view of its
beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from piecewise_core.errors import AddressChanged
from piecewise_core.graph.lying import dense_strides
from piecewise_core.graph.structure import Structure, TensorLeaf
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat.storages import copy_all

__all__ = ["FixedInputs", "OwnedInputs", "Stage", "repeat_rows"]

Stage = Callable[[Sequence[torch.Tensor], Sizes], None]
"""``stage(tensors, sizes)``: put one call's inputs where the graphs read them."""


Copier = Callable[[Sequence[torch.Tensor]], None]
"""Copies one tensor per buffer to its beginning and zeroes the rest: GraphDriver.stager."""

Stager = Callable[[Sequence[torch.Tensor]], Copier | None]
"""Makes that for buffers, if it can."""


class OwnedInputs:
    """Buffers of our own, for ``inputs="copy"``.

    ``largest``: the largest capture sizes, which the buffers are made for. ``stager``: makes
    copies in one launch, if it can.
    """

    def __init__(
        self,
        structure: Structure,
        largest: Sequence[Sizes],
        stager: Stager = lambda buffers: None,
    ) -> None:
        self._leaves = structure.tensors  # not the objects that calls hold
        self._stager = stager
        self._place = {d.name: i for i, d in enumerate(structure.dims)}
        # Tensors made in inference mode could be written to in no other.
        with torch.inference_mode(False):
            self._storage = [
                torch.zeros(
                    max((self._extent(leaf, sizes) for sizes in largest), default=0),
                    dtype=leaf.dtype,
                    device=leaf.device,
                )
                for leaf in structure.tensors
            ]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(storage.nbytes for storage in self._storage)

    def views(self, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        """The buffers as tensors of the traced layouts, for capture size ``sizes``."""
        return tuple(
            storage.as_strided(self._shape(leaf, sizes), self._strides(leaf, sizes))
            for leaf, storage in zip(self._leaves, self._storage, strict=True)
        )

    def stage(self, sizes: Sizes) -> Stage:
        """The copy into ``views(sizes)``; rows beyond a call's own sizes become zeros."""
        views = self.views(sizes)
        if any(leaf.strides is not None for leaf in self._leaves):
            return self._one_by_one(views)
        at_once = _apart(views, self._stager)
        if at_once is not None and all(map(self._only_outermost, self._leaves)):
            filling = at_once
            return lambda tensors, own: filling(tensors)
        copy, padded = at_once or _by_dtype(views), self._one_by_one(views)

        def stage(tensors: Sequence[torch.Tensor], own: Sizes) -> None:
            if own == sizes:
                copy(tensors)
                return
            padded(tensors, own)

        return stage

    def _one_by_one(self, views: Sequence[torch.Tensor]) -> Stage:
        """Copies of each input by itself; of what repeats its elements, each element once."""
        dims = [tuple(leaf.dims) for leaf in self._leaves]

        def stage(tensors: Sequence[torch.Tensor], own: Sizes) -> None:
            for view, tensor, axes in zip(views, tensors, dims, strict=True):
                for axis in _repeated(view, tensor):
                    view, tensor = view.narrow(axis, 0, 1), tensor.narrow(axis, 0, 1)
                _padded_copy(view, tensor, axes)

        return stage

    def _only_outermost(self, leaf: TensorLeaf) -> bool:
        """Whether a call's own elements are the first of the buffer's, whatever its sizes."""
        outer = next((a for a in leaf.order if a in leaf.dims or leaf.sizes[a] != 1), None)
        return all(axis == outer for axis in leaf.dims)

    def _extent(self, leaf: TensorLeaf, sizes: Sizes) -> int:
        """Elements from the first to the last, those between them included."""
        shape = self._shape(leaf, sizes)
        steps = zip(shape, self._strides(leaf, sizes), strict=True)
        return 1 + sum((n - 1) * step for n, step in steps) if 0 not in shape else 0

    def _strides(self, leaf: TensorLeaf, sizes: Sizes) -> tuple[int, ...]:
        """Those of the traced layout."""
        shape = self._shape(leaf, sizes)
        return dense_strides(shape, leaf.order) if leaf.strides is None else leaf.strides(sizes)

    def _shape(self, leaf: TensorLeaf, sizes: Sizes) -> list[int]:
        return [
            sizes[self._place[leaf.dims[axis].name]] if axis in leaf.dims else size
            for axis, size in enumerate(leaf.sizes)
        ]


class FixedInputs:
    """The caller's own tensors, for ``inputs="static"``: their addresses are checked."""

    def __init__(self, structure: Structure, tensors: Sequence[torch.Tensor]) -> None:
        self._leaves = structure.tensors  # not the objects that calls hold
        self._tensors = tuple(tensors)
        self._addresses = [t.data_ptr() for t in tensors]

    def views(self, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        """The tensors that were captured."""
        return self._tensors

    def stage(self, sizes: Sizes) -> Stage:
        """Checks addresses and copies nothing. Raises AddressChanged."""
        addresses = self._addresses

        def stage(tensors: Sequence[torch.Tensor], own: Sizes) -> None:
            if [t.data_ptr() for t in tensors] != addresses:
                raise self._moved(tensors)

        return stage

    def _moved(self, tensors: Sequence[torch.Tensor]) -> AddressChanged:
        moved = {
            leaf.path: f'"{leaf.path}" was at {then:#x} when captured and is at {now.data_ptr():#x}'
            for leaf, then, now in zip(self._leaves, self._addresses, tensors, strict=True)
            if now.data_ptr() != then
        }
        return AddressChanged(
            f'argument {"; ".join(moved.values())}; with inputs="static" every call of a captured '
            'size must pass the same memory: copy into the captured tensor, or set inputs="copy"'
        ).having(arguments=tuple(moved))


def repeat_rows(views: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """Put a call's last rows behind its own in place of zeros, for the runs of a capture.

    Those come before anybody has judged whether zeros will do: they may be no index, which ends a
    device's context.
    """
    for view, tensor in zip(views, tensors, strict=True):
        for axis in _repeated(view, tensor):
            view = view.narrow(axis, 0, 1)
        for axis, size in enumerate(tensor.shape):
            if 0 < size < view.shape[axis]:
                last = view.narrow(axis, size - 1, 1)
                view.narrow(axis, size, view.shape[axis] - size).copy_(last)


def _apart(views: Sequence[torch.Tensor], stager: Stager) -> Copier | None:
    """The driver's copy into its device's ``views``, and a plain one into those of the CPU."""
    here = [i for i, view in enumerate(views) if view.device.type == "cpu"]
    there = [i for i in range(len(views)) if i not in here]
    if not here or not there:
        return stager(views)
    over = stager([views[i] for i in there])
    if over is None:
        return None
    plain, at_once = _by_dtype([views[i] for i in here]), over

    def copy(tensors: Sequence[torch.Tensor]) -> None:
        plain([tensors[i] for i in here])
        at_once([tensors[i] for i in there])

    return copy


def _by_dtype(views: Sequence[torch.Tensor]) -> Copier:
    """The copy into all of ``views``, whole: one call, and on a device one launch, per dtype."""
    places: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, view in enumerate(views):
        places.setdefault((view.dtype, view.device), []).append(place)
    groups = [(found, [views[i] for i in found]) for found in places.values()]

    def copy(tensors: Sequence[torch.Tensor]) -> None:
        for found, group in groups:
            copy_all(group, [tensors[i] for i in found])

    return copy


def _repeated(view: torch.Tensor, tensor: torch.Tensor) -> list[int]:
    """Axes along which all of a buffer is one element, and a call has one."""
    steps = enumerate(view.stride())
    return [a for a, step in steps if not step and view.shape[a] > 1 and tensor.shape[a]]


def _padded_copy(view: torch.Tensor, tensor: torch.Tensor, axes: Sequence[int]) -> None:
    inner = view
    for axis in axes:
        size = tensor.shape[axis]
        if size < inner.shape[axis]:
            inner.narrow(axis, size, inner.shape[axis] - size).zero_()
            inner = inner.narrow(axis, 0, size)
    inner.copy_(tensor)
