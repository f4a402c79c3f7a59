"""The calls of a bench: of sizes in a file or a list, from one example or a function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from piecewise_core.cli.subject import Cannot, arguments_of
from piecewise_core.config import Config
from piecewise_core.planner.histogram import Histogram
from piecewise_core.ranges import Sizes

__all__ = ["Call", "Calls", "within"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Calls:
    """Arguments of a model by their sizes.

    ``made``: what the user's function returned: (model, make), where make(*sizes) returns the
    arguments, or (model, args) or (model, args, kwargs), whose tensors are then cut, or their rows
    repeated, to the sizes that ``config`` says are dynamic. Raises Cannot.
    """

    def __init__(self, made: Any, subject: str, config: Config) -> None:
        if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]):
            raise Cannot(
                f"{subject} returned a {type(made).__name__}; it must return (model, make), "
                "(model, args) or (model, args, kwargs)"
            )
        self.model, given, *rest = made
        self._subject, self._config = subject, config
        self._make: Callable[..., Any] | None = given if callable(given) else None
        self._example: Call = ((), {})
        if self._make is None:
            self._example = arguments_of(subject, given, rest[0] if rest else {})

    def of(self, sizes: Sizes) -> Call:
        """The arguments of a call of ``sizes``."""
        if self._make is None:
            return self._resized(sizes)
        try:
            made = self._make(*sizes)
        except Exception as error:
            asked = ", ".join(map(str, sizes))
            raise Cannot(
                f"{self._subject}: make({asked}) raised {type(error).__name__}: {error}"
            ) from error
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict):
            return arguments_of(self._subject, *made)
        return arguments_of(self._subject, made, {})

    def own(self) -> Sizes:
        """The sizes of the example. Raises Cannot where there is none."""
        if self._make is not None and self._config.dims:
            raise Cannot(f"{self._subject} gives no example; say with --sizes which calls to make")
        found: dict[str, int] = {}
        for tensor, axis, name in self._dynamic():
            found.setdefault(name, tensor.shape[axis])
        return tuple(found[dim.name] for dim in self._config.dims)

    def _resized(self, sizes: Sizes) -> Call:
        wanted = {dim.name: n for dim, n in zip(self._config.dims, sizes, strict=True)}
        new: dict[int, torch.Tensor] = {}
        for tensor, axis, name in self._dynamic():
            now = new.get(id(tensor), tensor)
            if now.shape[axis] == 0:
                raise Cannot(
                    f"{self._subject}: dim {name!r} of the example is 0; give one with rows"
                )
            rows = torch.arange(wanted[name], device=now.device) % now.shape[axis]
            new[id(tensor)] = now.index_select(axis, rows)
        args, kwargs = self._example
        return (
            tuple(new.get(id(arg), arg) for arg in args),
            {name: new.get(id(arg), arg) for name, arg in kwargs.items()},
        )

    def _dynamic(self) -> list[tuple[torch.Tensor, int, str]]:
        """Each tensor of the example with a dynamic axis, and the dim's name."""
        args, kwargs = self._example
        names = _names(self.model)
        by_name = {**dict(zip(names, args, strict=False)), **kwargs}
        found = []
        for key, axes in self._config.dynamic.items():
            value = by_name.get(key) if isinstance(key, str) else _at(args, key)
            if not isinstance(value, torch.Tensor):
                raise Cannot(
                    f"{self._subject}: the example has no tensor {key!r}, which Config.dynamic "
                    "names; return (model, make), where make(*sizes) returns the arguments"
                )
            found += [(value, axis, dim.name) for axis, dim in axes.items()]
        return found


def within(histogram: Histogram, config: Config, most: int) -> tuple[Mapping[Sizes, int], str]:
    """The ``most`` frequent sizes in bounds, with their calls; and what was left out.

    Raises Cannot where no size is in bounds.
    """
    dims = config.dims
    fits = {
        sizes: count
        for sizes, count in histogram.calls.items()
        if len(sizes) == len(dims) and sizes in config.bounds
    }
    if not fits:
        shown = ", ".join(f"{dim.name} {dim.sizes}" for dim in dims) or "no dims"
        raise Cannot(f"no size of the calls is in the bounds of the Config ({shown})")
    kept = dict(
        sorted(fits.items(), key=lambda item: (-item[1] * math.prod(item[0]), item[0]))[:most]
    )
    share = sum(kept.values()) / histogram.total
    note = (
        "" if share == 1 else f"{len(kept)} sizes are {share:.1%} of the calls; others are left out"
    )
    return dict(sorted(kept.items())), note


def _at(args: tuple[Any, ...], place: int) -> Any:
    return args[place] if -len(args) <= place < len(args) else None


def _names(model: Any) -> list[str]:
    call = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        return list(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return []
