"""``PIECEWISE_<FIELD>`` variables: from text to Config's values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from piecewise_core import config_io
from piecewise_core.errors import ConfigError

__all__ = ["near_misses", "override"]

C = TypeVar("C")

_PREFIX = "PIECEWISE_"
_OTHERS = frozenset({"PIECEWISE_CACHE_LIMIT", "PIECEWISE_CACHE_MODE", "PIECEWISE_PLATFORM"})
_NAMES = frozenset({"rewrites_off", "splitting_ops"})
_SIZES = frozenset({"compile_ranges_endpoints", "compile_sizes", "capture_sizes"})
_FLAGS = frozenset({"capture_max", "clone_outputs", "profiler_names"})
_NUMBERS = frozenset({
    "compile_workers", "max_forms", "max_padding_factor", "max_regions", "memory_limit",
    "ranks_timeout", "verify_rate",
})  # fmt: skip


def override(
    fields: Collection[str], environ: Mapping[str, str], replace: Callable[..., C]
) -> C | None:
    """Return ``replace(field=value, ...)`` of the ``fields`` that ``environ`` sets; None for none.

    Raises ConfigError naming the variable whose value was refused; where the fault lies between
    several settings, naming all of them.
    """
    given = {field: environ.get(_variable(field), "").strip() for field in fields}
    texts = {field: text for field, text in given.items() if text}
    if not texts:
        return None
    try:
        changes = {field: _parse(field, text) for field, text in texts.items()}
        changes = config_io.arguments(changes, list(given))
        return replace(**changes)
    except ConfigError as error:
        blamed = [f for f in texts if str(error).startswith((f"Config.{f}:", f"Config.{f}["))]
        shown = {f: "(set)" if f == "sign_key" else repr(texts[f]) for f in blamed or texts}
        said = ", ".join(f"{_variable(f)}={text}" for f, text in shown.items())
        raise ConfigError(f"{said}: {error}") from error


def near_misses(environ: Mapping[str, str], known: Collection[str]) -> Iterator[str]:
    """Yield one sentence per ``PIECEWISE_`` variable that nearly names one of the fields."""
    variables = {_variable(field) for field in known}
    for name in environ:
        if not name.startswith(_PREFIX) or name in variables or name in _OTHERS:
            continue
        import difflib  # 5 ms, needed for slips only

        # Without the prefix: shared, it would make every two names look alike.
        close = difflib.get_close_matches(name[len(_PREFIX) :].lower(), known, n=1, cutoff=0.8)
        if close:
            yield f"{name} sets nothing; did you mean {_variable(close[0])}?"


def _variable(field: str) -> str:
    return _PREFIX + field.upper()


def _parse(field: str, text: str) -> Any:
    """The value that ``text`` stands for; text that cannot be read is left for Config to refuse."""
    value = _json(text)
    if field in _FLAGS:
        return {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
    if field == "dynamic" or field in _NUMBERS:
        return value
    if field in _NAMES:
        return _names(value)
    if field in _SIZES:
        return _sizes(text, value)
    # A directory called 2024 is a name: only quoted JSON and null mean more than their text.
    return value if isinstance(value, str) or value is None else text


def _json(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _names(value: Any) -> Any:
    if not isinstance(value, str) or value == "auto":
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


def _sizes(text: str, value: Any) -> Any:
    """``8`` and ``8,16`` and ``(8, 128), (16, 128)`` and what JSON can say."""
    if value is not text and not isinstance(value, int):
        return value
    brackets = text.rstrip(", ").translate(str.maketrans("()", "[]"))
    items = _json(f"[{brackets}]")
    return items if isinstance(items, list) else value
