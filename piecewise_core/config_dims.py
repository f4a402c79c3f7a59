"""Named dynamic dimensions, and which argument's dimension is which.

Users import ``Dim`` from ``piecewise_core``; this module is the part of the configuration that
other fields are checked against.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from typing_extensions import Self

from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Range, Sizes

__all__ = ["Dim", "FrozenMap", "as_sizes", "dims_of", "freeze_dynamic", "integer", "nearest"]

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)


@dataclass(frozen=True)
class Dim:
    """Name a dynamic dimension; the same name means the same size at every call.

    ``min``, ``max``: sizes in rows, both inclusive. ``max`` is required: every dim is bounded.
    ``multiple_of``: only its multiples are legal sizes. Raises ConfigError for an empty name, a
    bound that is no int, ``min < 0``, ``max < min``, or no multiple between them.
    """

    name: str
    min: int = 1
    max: int = cast("int", None)  # None: not given, so that Dim(name, max=...) works too
    multiple_of: int = 1

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Raise ConfigError for what a Dim has not, naming the nearest."""
        known = ("name", "min", "max", "multiple_of")
        for key in named:
            if key not in known:
                raise ConfigError(
                    f"Dim: {key!r} is not part of it ({', '.join(known)}){nearest(key, known)}"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"Dim.name: {self.name!r} is not a name; give a non-empty string")
        where = f"Dim {self.name!r}"
        if self.max is None:
            raise ConfigError(f"{where} has no max; write Dim({self.name!r}, max=<largest size>)")
        lo, hi = integer(f"{where}: min", self.min), integer(f"{where}: max", self.max)
        if hi < lo:
            raise ConfigError(f"{where}: max {hi} is below min {lo}; raise max or lower min")
        object.__setattr__(self, "min", lo)
        object.__setattr__(self, "max", hi)
        step = integer(f"{where}: multiple_of", self.multiple_of)
        if not step:
            raise ConfigError(f"{where}: multiple_of is 0; give 1 or more")
        if hi // step * step < lo:
            raise ConfigError(
                f"{where}: no multiple of {step} lies in [{lo}, {hi}]; raise max or lower min"
            )
        object.__setattr__(self, "multiple_of", step)

    def __str__(self) -> str:
        return f"{self.name!r} {self.bounds}"

    @property
    def bounds(self) -> str:
        """The bounds as text."""
        of = f", multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"[{self.min}, {self.max}]{of}"

    @property
    def sizes(self) -> Range:
        """The legal sizes."""
        return self.sizes_to(self.max)

    def sizes_to(self, end: int) -> Range:
        """The legal sizes, as if ``max`` were ``end``."""
        step = self.multiple_of
        return Range(-(-self.min // step) * step, end // step * step, step, 1)


class FrozenMap(Mapping[K, V_co]):
    """Hold a mapping that cannot change, can be hashed and pickled, and keeps its order.

    Like OrderedDict, it equals another FrozenMap only in the same order (the order of
    ``Config.dynamic`` is the order of its dims), and any other mapping in any order.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V_co]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V_co:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return tuple(self.items()) == tuple(other.items())
        return self._items == other

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def nearest(word: object, candidates: Collection[str]) -> str:
    """Return ``; did you mean 'x'?`` for the candidate closest to ``word``, or nothing."""
    import difflib  # 5 ms, needed for errors only

    close = difflib.get_close_matches(str(word), candidates, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def integer(where: str, value: object) -> int:
    """Return ``value`` as a plain int.

    ``where``: opens the message. Raises ConfigError for anything but an int, for a bool, and for
    a negative.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"{where}: {value!r} is {type(value).__name__}, not int; give a whole number"
        )
    if value < 0:
        raise ConfigError(f"{where}: {value} is negative; give 0 or more")
    return int(value)


def freeze_dynamic(value: object) -> FrozenMap[str | int, FrozenMap[int, Dim]]:
    """Return ``Config.dynamic`` checked and immutable, in the order given.

    ``value``: argument name, path inside an argument ("features.input_ids", "xs.0") or positional
    index -> {tensor dimension: Dim}. A key of digits only is a positional index. Raises
    ConfigError for another shape, and for one Dim name with two pairs of bounds.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"Config.dynamic: {value!r} is not a mapping; "
            'write {"argument": {0: Dim("rows", max=1024)}}'
        )
    frozen: dict[str | int, FrozenMap[int, Dim]] = {}
    for key, axes in value.items():
        argument = _argument(key)
        if argument in frozen:
            raise ConfigError(f"Config.dynamic: argument {argument!r} is listed twice; merge them")
        frozen[argument] = _axes(argument, axes)
    _check_bounds_agree(frozen)
    return FrozenMap(frozen)


def as_sizes(listed: Sequence[int | Sizes]) -> tuple[Sizes, ...]:
    """Sizes, one tuple each, of which those of one dim may be written as ints."""
    return tuple((size,) if isinstance(size, int) else tuple(size) for size in listed)


def dims_of(dynamic: Mapping[Any, Mapping[int, Dim]]) -> tuple[Dim, ...]:
    """Return the distinct dims of a frozen ``Config.dynamic``, in order of first appearance."""
    return tuple(dict.fromkeys(dim for axes in dynamic.values() for dim in axes.values()))


def _argument(key: object) -> str | int:
    if isinstance(key, str) and key:
        return int(key) if key.isascii() and key.isdigit() else key
    if isinstance(key, str):
        raise ConfigError("Config.dynamic: '' names no argument; give its name or its position")
    return integer("Config.dynamic: argument", key)


def _axes(argument: str | int, axes: object) -> FrozenMap[int, Dim]:
    where = f"Config.dynamic[{argument!r}]"
    if not isinstance(axes, Mapping):
        raise ConfigError(
            f"{where}: {axes!r} is not a mapping; write {{0: Dim('rows', max=1024)}}, "
            "the tensor's dimension first"
        )
    for axis, dim in axes.items():
        if isinstance(axis, str) and isinstance(dim, Mapping) and all(type(k) is int for k in dim):
            raise ConfigError(
                f"{where}: {axis!r} is no tensor dimension; a tensor inside of an argument has a "
                f"key of its own: write {{{f'{argument}.{axis}'!r}: ...}}"
            )
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ConfigError(
                f"{where}: {axis!r} is no tensor dimension; give an int such as 0 or -1"
            )
        if not isinstance(dim, Dim):
            raise ConfigError(
                f"{where}[{axis}]: {dim!r} is {type(dim).__name__}, not Dim; "
                "write Dim('rows', min=1, max=1024)"
            )
    return FrozenMap(axes)


def _check_bounds_agree(dynamic: Mapping[str | int, Mapping[int, Dim]]) -> None:
    seen: dict[str, tuple[str, Dim]] = {}
    for argument, axes in dynamic.items():
        for axis, dim in axes.items():
            place = f"dynamic[{argument!r}][{axis}]"
            first, known = seen.setdefault(dim.name, (place, dim))
            if known != dim:
                raise ConfigError(
                    f"Config.dynamic: dim {known.name!r} is {known.bounds} at {first} and "
                    f"{dim.bounds} at {place}; the same name is the same size: "
                    "give both the same bounds or different names"
                )
