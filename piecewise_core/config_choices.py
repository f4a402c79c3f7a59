"""Fields of Config that take one of a few words."""

from __future__ import annotations

from typing import Any, Literal

from piecewise_core import config_fields
from piecewise_core.config_dims import integer

__all__ = ["CaptureCompile", "CompileMode", "GraphMode", "check_choices", "check_workers"]

GraphMode = Literal["none", "piecewise", "full", "full_and_piecewise"]
CompileMode = Literal["lazy", "warmup", "background"]
CaptureCompile = Literal["auto", "exact", "range"]

_CHOICES = {
    "padding": ("none", "capture_sizes"),
    "out_of_range": ("error", "general", "eager"),
    "compile_mode": ("lazy", "warmup", "background"),
    "capture": ("first", "lazy"),
    "capture_compile": ("auto", "exact", "range"),
    "graph_executables": ("own", "shared"),
    "graph_streams": ("one", "two", "auto"),
    "inputs": ("copy", "static"),
    "regions": ("declared", "auto"),
    "check": ("off", "cheap", "strict", "verify"),
}
_GRAPH_MODES = ("none", "piecewise", "full", "full_and_piecewise")


def check_workers(value: object) -> int | Literal["auto"]:
    """Return ``Config.compile_workers``: a number of processes, 0 for none, or "auto"."""
    if isinstance(value, str):
        config_fields.choice("compile_workers", value, ("auto",))
        return "auto"
    return integer("Config.compile_workers", value)


def check_choices(config: Any) -> None:
    """Raise ConfigError for a field with another word than it may have."""
    for name, allowed in _CHOICES.items():
        config_fields.choice(name, getattr(config, name), allowed)
    if config.graph_mode is not None:
        config_fields.choice("graph_mode", config.graph_mode, _GRAPH_MODES)
