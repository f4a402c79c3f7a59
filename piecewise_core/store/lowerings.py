"""Who changed the tables by which torch's compilers take operators apart.

``torch.library`` and ``register_decomposition`` put a program's own functions into tables of the
whole process. What a table holds beside torch's own goes into every key by its code; what cannot
be told apart from other versions of it lets nothing be kept. Read in torch 2.11 and 2.13.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from piecewise_core.errors import StoreError
from piecewise_core.store.sources import function_identity
from piecewise_core.torch_compat.inductor import lowering_tables
from piecewise_core.torch_compat.operators import decomposition_table

__all__ = ["own_lowerings"]

_PYTHONS = frozenset({"_operator", "builtins", "math"})


def own_lowerings() -> dict[str, str]:
    """Table -> digest of the functions in it that are not torch's; tables without any left out.

    Raises StoreError.
    """
    found = {}
    for name, table in _tables():
        if _foreign(tuple(table.values())):
            own = [(key, value) for key, value in table.items() if not _is_torchs(value)]
            found[f"torch.{name}"] = _digest(name, own)
    return found


@functools.lru_cache(16)
def _foreign(functions: tuple[Any, ...]) -> bool:
    """Whether some are not torch's; looked at once for what a table holds."""
    return not all(map(_is_torchs, functions))


def _tables() -> Iterator[tuple[str, Mapping[Any, Any]]]:
    yield "decompositions", decomposition_table
    for name, table in lowering_tables():
        yield f"inductor.{name}", table


def _is_torchs(function: Any) -> bool:
    """Whether torch or Python made it: torch lowers ``operator.add`` by that function itself."""
    module = getattr(_inmost(function), "__module__", None) or ""
    return module in _PYTHONS or module == "torch" or module.startswith("torch.")


def _inmost(function: Any) -> Any:
    """What torch's own wrappers, and a program's, are around."""
    while True:
        inner = getattr(function, "__wrapped__", None)
        if inner is None and isinstance(function, functools.partial):
            inner = function.func
        if inner is None:
            return function
        function = inner


def _digest(name: str, own: Iterable[tuple[Any, Any]]) -> str:
    lines = []
    for key, function in own:
        identity = function_identity(_inmost(function))
        if identity is None:
            raise StoreError(
                f"torch's table of {name} holds a function for {key} that cannot be told from "
                "other versions of it"
            )
        lines.append(f"{key} {identity}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
