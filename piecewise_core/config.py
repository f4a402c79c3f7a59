"""What a user can set: one frozen, checked value that every stage reads.

No torch and no plugin is imported here; names of compilers and splitting ops are judged elsewhere.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from piecewise_core import (
    config_choices,
    config_env,
    config_fields,
    config_io,
    config_ranks,
    config_store,
)
from piecewise_core.config_dims import Dim, FrozenMap, as_sizes, dims_of, freeze_dynamic
from piecewise_core.events import Event, check_listener
from piecewise_core.ranges import Box, Range, Sizes
from piecewise_core.targets import check_factor

__all__ = ["Config", "ConfigWarning", "Dim"]


class ConfigWarning(UserWarning):
    """A setting was put right, or looks like a slip; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Config(config_io.PlainData):
    """Say how a model is cut, compiled, captured and called.

    Fields hold normal forms whatever container they are given in: sorted tuples without duplicates;
    one ConfigWarning tells what was put right. Sizes and range ends are in rows and inclusive; with
    several dims a size is a tuple in the order in which ``dynamic`` first names the dims. While it
    is empty they are not checked. Raises ConfigError naming field, value and what to change.

    ``splitting_ops``: operators or torch functions to cut at, or "auto" (what the platform cannot
    capture). ``dynamic``: argument name, path inside an argument ("features.input_ids"), or
    positional index -> {tensor dimension: Dim}. ``compile_ranges_endpoints``: where ranges end; by
    dim name when there are several. ``compile_sizes``: exact sizes to compile, or "capture_sizes".
    ``capture_sizes``: sizes that hold static graphs; the maximum joins them unless ``capture_max``
    is False; the one size of a model without dims is ``()``. ``graph_mode``: None means "piecewise"
    when there are capture sizes and the platform has graphs, else "none"; any other, without dims,
    captures the size ``()``. ``capture``: whether a size is captured at its first call or, "lazy",
    at its second. ``capture_compile``: whether graphs hold code for exactly their size, or their
    range's; "auto" measures. ``graph_executables``: whether graphs share what launches them, to
    save the driver's memory. ``graph_streams``: whether independent parts of a whole forward run on
    two streams; "auto" measures. ``padding``: whether a call is padded up to a capture size, of
    each dim at most ``max_padding_factor`` times its own. ``out_of_range``: what a size out of
    bounds does. ``compiler``: a name; None is the platform's own. ``compile_mode``: when it
    compiles. ``compile_workers``: processes that compile pieces side by side while a call or
    warm-up waits. ``regions``: whether a branch of the model on a size cuts the sizes by itself, up
    to ``max_regions`` regions traced, or at listed endpoints only. ``inputs``: "static" promises
    that inputs never move. ``clone_outputs``: whether outputs survive the next call. ``check``: how
    closely calls are checked. ``verify_rate``: with ``check="verify"`` the share of calls that also
    run as written, to compare. ``max_forms``: forms of calls that are traced, each by itself.
    ``rewrites_off``: names of rewrites that are left out. ``cache_dir``: None is the user's cache.
    ``cache_url``: what machines share behind it. ``trust``: whose code is loaded. ``sign_key``: a
    file of keys, or an id; never shown. ``memory_limit``: bytes for graphs. ``profiler_names``:
    whether profiles name pieces. ``on_event``: called with each ``pw.Event``. ``ranks``: processes
    that capture alike, a group of torch.distributed, "auto" for those of the model's collectives,
    or None; ``ranks_timeout``: how long one waits. Keys, functions and groups are not serialised.
    """

    splitting_ops: Sequence[str] | Literal["auto"] = ()
    dynamic: Mapping[Any, Mapping[int, Dim]] = field(default_factory=lambda: FrozenMap({}))
    compile_ranges_endpoints: Sequence[int] | Mapping[str, Sequence[int]] = ()
    compile_sizes: Sequence[int | Sizes] | Literal["capture_sizes"] = ()
    capture_sizes: Sequence[int | Sizes] = ()
    capture_max: bool = True
    graph_mode: config_choices.GraphMode | None = None
    capture: Literal["first", "lazy"] = "first"
    capture_compile: config_choices.CaptureCompile = "auto"
    graph_executables: Literal["own", "shared"] = "own"
    graph_streams: Literal["one", "two", "auto"] = "one"
    padding: Literal["none", "capture_sizes"] = "none"
    max_padding_factor: float | None = None
    out_of_range: Literal["error", "general", "eager"] = "error"
    compiler: str | None = None
    compile_mode: config_choices.CompileMode = "lazy"
    compile_workers: int | Literal["auto"] = "auto"
    regions: Literal["declared", "auto"] = "auto"
    max_regions: int = 64
    inputs: Literal["copy", "static"] = "copy"
    clone_outputs: bool = False
    check: Literal["off", "cheap", "strict", "verify"] = "cheap"
    verify_rate: float = 0.01
    max_forms: int = 8
    rewrites_off: Sequence[str] = ()
    cache_dir: str | os.PathLike[str] | None = None
    cache_url: str | None = None
    trust: config_store.Trust = "own"
    sign_key: str | os.PathLike[str] | None = field(default=None, repr=False)
    memory_limit: int | None = None
    profiler_names: bool = False
    on_event: Callable[[Event], object] | None = None
    ranks: Any = "auto"
    ranks_timeout: float = 5.0

    def __post_init__(self) -> None:
        notes: list[str] = []
        self._normalise_scalars()
        self._set("splitting_ops", config_fields.names("splitting_ops", self.splitting_ops, notes))
        self._set("dynamic", freeze_dynamic(self.dynamic))
        self._set("rewrites_off", config_fields.rewrites("rewrites_off", self.rewrites_off, notes))
        self._normalise_sizes(notes)
        if notes:
            # Past __post_init__ and the generated __init__ stands whoever wrote the values.
            warnings.warn("\n".join(notes), ConfigWarning, stacklevel=3)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _normalise_scalars(self) -> None:
        config_choices.check_choices(self)
        self._set("compile_workers", config_choices.check_workers(self.compile_workers))
        self._set("max_regions", config_fields.count("max_regions", self.max_regions))
        self._set("max_padding_factor", check_factor(self.max_padding_factor))
        for name in ("capture_max", "clone_outputs", "profiler_names"):
            config_fields.flag(name, getattr(self, name))
        config_fields.name("compiler", self.compiler)
        self._set("verify_rate", config_fields.share("verify_rate", self.verify_rate))
        self._set("max_forms", config_fields.count("max_forms", self.max_forms))
        for name, value in config_store.checked(self).items():
            self._set(name, value)
        self._set("memory_limit", config_fields.limit("memory_limit", self.memory_limit))
        check_listener(self.on_event)
        self._set("ranks", config_ranks.ranks(self.ranks))
        self._set("ranks_timeout", config_ranks.ranks_timeout(self.ranks_timeout))

    def _normalise_sizes(self, notes: list[str]) -> None:
        dims = self.dims
        ends = config_fields.endpoints(self.compile_ranges_endpoints, dims, notes)
        self._set("compile_ranges_endpoints", ends)
        if not isinstance(self.compile_sizes, str) or self.compile_sizes != "capture_sizes":
            exact = config_fields.sizes("compile_sizes", self.compile_sizes, dims, notes)
            self._set("compile_sizes", exact)
        captures = config_fields.sizes("capture_sizes", self.capture_sizes, dims, notes)
        if captures and dims and self.capture_max and self._maximum not in captures:
            captures = (*captures, self._maximum)  # no size sorts after it
        self._set("capture_sizes", captures)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The distinct dims, in the order in which ``dynamic`` first names them."""
        return dims_of(self.dynamic)

    @property
    def bounds(self) -> Box:
        """The bounds of every dim, in the order of ``dims``."""
        return Box(tuple(dim.sizes for dim in self.dims))

    @property
    def hull(self) -> Box:
        """The bounds of every dim, with sizes between them that are no multiples."""
        return Box(tuple(Range(dim.min, dim.max) for dim in self.dims))

    @property
    def uneven(self) -> Range | None:
        """The sizes between bounds, of a lone dim, that are legal only if padded; None for none."""
        step = self.dims[0].multiple_of if len(self.dims) == 1 else 1
        if step == 1 or self.padding == "none":
            return None
        (hull,) = self.hull.ranges
        return hull.intersect(Range(1, hull.end + step, step, (1 << step) - 2))

    def padded_up(self, sizes: Sizes) -> Sizes | None:
        """The capture size that a call of ``sizes``, which are legal if padded, is padded to."""
        if self.uneven is None or sizes[0] not in self.uneven:
            return None
        return min((c for c in self.captures if c > sizes), default=None)

    @property
    def endpoints_by_dim(self) -> tuple[tuple[int, ...], ...]:
        """The range ends of each dim, in the order of ``dims``."""
        ends = self.compile_ranges_endpoints
        if isinstance(ends, Mapping):
            return tuple(tuple(ends.get(dim.name, ())) for dim in self.dims)
        return tuple(tuple(ends) for _ in self.dims)

    @property
    def legal_cuts(self) -> tuple[tuple[int, ...], ...] | None:
        """Per dim, where regions may end besides 0 and 1; None for anywhere."""
        return None if self.regions == "auto" else self.endpoints_by_dim

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """The exact sizes to compile, one int per dim each; if asked for, capture sizes too."""
        if isinstance(self.compile_sizes, str):
            return self.captures
        listed = as_sizes(self.compile_sizes)
        return (*listed, *self.captures) if self.capture_compile == "exact" else listed

    @property
    def captures(self) -> tuple[Sizes, ...]:
        """The sizes to capture, the maximum included where it joins them, one int per dim each.

        Without dims calls have one size, ``()``; asking for graphs by ``graph_mode`` asks for it.
        """
        if not self.dims and not self.capture_sizes and self.graph_mode not in (None, "none"):
            return ((),)
        return as_sizes(self.capture_sizes)

    @property
    def _maximum(self) -> int | Sizes:
        """The largest size, written as ``capture_sizes`` writes sizes."""
        largest = tuple(dim.sizes.end for dim in self.dims)
        return largest[0] if len(largest) == 1 else largest

    def replace(self, **changes: Any) -> Config:
        """Return a copy with ``changes``, checked as a whole.

        When ``dynamic`` or ``capture_max`` changes and ``capture_sizes`` does not, the old
        maximum leaves the capture sizes unless it is the only one. Raises ConfigError for an
        unknown field.
        """
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        config_io.check_keys(changes, kept)
        # The last capture size can have come from ``capture_max``: never a lone one.
        joined = self.capture_max and bool(self.dims) and len(self.capture_sizes) > 1
        if joined and ("dynamic" in changes or "capture_max" in changes):
            kept["capture_sizes"] = self.capture_sizes[:-1]
        return Config(**(kept | changes))

    def with_env(self, environ: Mapping[str, str] | None = None) -> Config:
        """Return a copy in which ``PIECEWISE_<FIELD>`` variables override fields.

        ``environ``: the variables, by default the process's. Values are JSON, or for a sequence
        comma-separated, or plain text; an empty value counts as unset. A variable that nearly
        names a field gives a ConfigWarning. Raises ConfigError naming the variable.
        """
        environ = os.environ if environ is None else environ
        names = [f.name for f in fields(self)]
        for note in config_env.near_misses(environ, names):
            warnings.warn(note, ConfigWarning, stacklevel=2)
        return config_env.override(names, environ, self.replace) or self

    def cache_factors(self) -> dict[str, str]:
        """Return the fields that belong in a compile-cache key by themselves.

        The others are in it through pieces and their Box, or change nothing. A None compiler is "".
        """
        return {"compiler": self.compiler or ""}
