"""Fields of Config that take one of a few words."""

from __future__ import annotations

from typing import Any, Literal

from piecewise_core import config_fields

__all__ = ["CaptureCompile", "CompileMode", "GraphMode", "check_choices"]

GraphMode = Literal["none", "piecewise", "full", "full_and_piecewise"]
CompileMode = Literal["lazy", "warmup", "background"]
CaptureCompile = Literal["auto", "exact", "range"]

_CHOICES = {
    "padding": ("none", "capture_sizes"),
    "out_of_range": ("error", "general", "eager"),
    "compile_mode": ("lazy", "warmup", "background"),
    "capture": ("first", "lazy"),
    "capture_compile": ("auto", "exact", "range"),
    "inputs": ("copy", "static"),
    "regions": ("declared", "auto"),
    "check": ("off", "cheap", "strict", "verify"),
}
_GRAPH_MODES = ("none", "piecewise", "full", "full_and_piecewise")


def check_choices(config: Any) -> None:
    """Raise ConfigError for a field with another word than it may have."""
    for name, allowed in _CHOICES.items():
        config_fields.choice(name, getattr(config, name), allowed)
    if config.graph_mode is not None:
        config_fields.choice("graph_mode", config.graph_mode, _GRAPH_MODES)
