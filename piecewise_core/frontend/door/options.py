"""What ``torch.compile`` was told: options and modes as a Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piecewise_core.config import Config, Dim
from piecewise_core.config_fields import nearest
from piecewise_core.errors import ConfigError
from piecewise_core.ranges import NO_BOUND

__all__ = ["Asked", "asked", "fitted"]

_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")

_UNLIKE_COMPILE = {"capture": "lazy", "clone_outputs": True}
"""Defaults of the door: nobody asked for graphs, so sizes that come once get none, and callers do
not know that a replay overwrites results."""

_SIZED = ("compile_ranges_endpoints", "compile_sizes", "capture_sizes")
_WITHOUT_EFFECT = ("out_of_range", "regions", "max_regions", "max_forms")
_GRAPH_FIELDS = (
    "capture", "capture_sizes", "capture_max", "graph_executables", "graph_streams", "padding",
    "inputs", "clone_outputs",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """``config``: knows no dims yet. ``platform``: a name, an instance or None.

    ``mode``: torch's. ``given``: the Config fields that options name.
    """

    config: Config
    platform: Any
    mode: str
    given: frozenset[str]

    def without_effect(self) -> str:
        """What to say of options that do nothing here; "" where all do."""
        named = [name for name in _WITHOUT_EFFECT if name in self.given]
        said = ""
        if named:
            said = (
                f"{', '.join(named)} has no effect in torch.compile(backend='piecewise'): Dynamo "
                "guards sizes and forms of calls; leave it out"
            )
        if self.mode == "max-autotune-no-cudagraphs":
            said += (
                f"{'. ' if said else ''}mode={self.mode!r} turns static graphs off and tunes "
                "nothing; set torch._inductor.config.max_autotune for that"
            )
        return said

    def without_graphs(self, platform: str) -> str:
        """What to say on a platform without static graphs; "" where nobody asked for any."""
        named = [name for name in _GRAPH_FIELDS if name in self.given]
        wanted = ["mode='reduce-overhead'"] if self.mode == "reduce-overhead" else []
        if not named + wanted:
            return ""
        return (
            f"{', '.join(wanted + named)} asks for static graphs, and platform {platform!r} has "
            "none: calls are served without"
        )


def asked(options: Mapping[str, Any] | None, mode: str | None) -> Asked:
    """Options and the environment's settings. Raises ConfigError."""
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"options={options!r:.60} is no dict of Config fields by name")
    settings = dict(options or {})
    own = settings.pop("mode", None)
    if mode is not None and own is not None:
        raise ConfigError(f"mode={mode!r} and options['mode']={own!r}: give one of the two")
    wanted = mode or own or "default"
    if wanted not in _MODES:
        raise ConfigError(
            f"mode={wanted!r} is not one of {', '.join(map(repr, _MODES))}"
            f"{nearest(wanted, _MODES)}; options={{...}} takes Config fields"
        )
    platform = settings.pop("platform", None)
    config = Config.from_dict({**_UNLIKE_COMPILE, **settings}).with_env()
    if config.dynamic:
        raise ConfigError(
            "dynamic is for pw.compile; here dims come from torch.compile: pass dynamic=True to "
            "it, or use torch._dynamo.mark_dynamic(tensor, dim, min=, max=)"
        )
    return Asked(_with_mode(config, wanted), platform, wanted, frozenset(settings))


def _with_mode(config: Config, mode: str) -> Config:
    if mode == "reduce-overhead" and config.graph_mode == "none":
        raise ConfigError(f"mode={mode!r} asks for static graphs and graph_mode='none' for none")
    if mode != "max-autotune-no-cudagraphs":
        return config
    if config.graph_mode not in (None, "none"):
        raise ConfigError(
            f"mode={mode!r} asks for no static graphs and graph_mode={config.graph_mode!r} for some"
        )
    return config.replace(graph_mode="none")


def fitted(config: Config, dims: Sequence[Dim]) -> Config:
    """``config`` with the graph's dims. Sizes outside their bounds are for other graphs.

    Dynamo makes a graph for each size that it specialises and narrows the bounds of the rest;
    a graph without dims takes no endpoints and no sizes.
    """
    changes: dict[str, Any] = dict.fromkeys(_SIZED, ())
    if dims:
        changes = {name: _inside(getattr(config, name), dims) for name in _SIZED}
        changes["dynamic"] = {str(place): {0: dim} for place, dim in enumerate(dims)}
    if any(dim.max >= NO_BOUND for dim in dims):
        changes["capture_max"] = False  # there is no largest size
    return config.replace(**changes)


def _inside(listed: Any, dims: Sequence[Dim]) -> Any:
    """Those of the listed sizes that lie in the bounds; what is malformed is left to Config."""
    if isinstance(listed, str):
        return listed
    if isinstance(listed, Mapping):
        known = {dim.name: dim for dim in dims}
        return {n: _inside(v, [known[n]]) if n in known else v for n, v in listed.items()}
    spans = [dim.sizes for dim in dims]

    def fits(entry: Any) -> bool:
        sizes = (entry,) if isinstance(entry, int) else entry
        return len(sizes) != len(spans) or all(s in r for s, r in zip(sizes, spans, strict=True))

    return [entry for entry in listed if fits(entry)]
