"""Look a private name of torch up, and say which one is missing."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from piecewise_core.errors import TorchUnsupported
from piecewise_core.torch_compat.versions import tested_range

__all__ = ["missing", "needed", "optional", "reader"]


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Turn the failure to import or read a name of torch's inside into TorchUnsupported."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        name = _import_name(error) if isinstance(error, ImportError) else _attribute_name(error)
        if name.split(".")[0] != "torch":
            raise
        raise missing(name) from error


def missing(name: str) -> TorchUnsupported:
    """The error for ``name``, which this torch lacks."""
    return TorchUnsupported(
        f"torch {torch.__version__} has no {name}, which piecewise needs. piecewise is tested with "
        f"torch {tested_range()}: install one of these, or a newer piecewise."
    )


def optional(path: str, default: Any = None) -> Any:
    """``torch.`` and ``path``, or ``default`` where torch lacks it."""
    found: Any = torch
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            return default
    return found


def reader(sample: Any, name: str) -> Callable[[Any], Any]:
    """What reads the attribute ``name`` of objects like ``sample``, which must have it."""
    if not hasattr(sample, name):
        kind = sample if isinstance(sample, type) else type(sample)
        raise missing(f"{kind.__module__}.{kind.__qualname__}.{name}")
    return operator.attrgetter(name)


def _import_name(error: ImportError) -> str:
    """The dotted name that an import did not find."""
    found = re.match(r"cannot import name '(\w+)'", str(error))
    return f"{error.name}.{found[1]}" if found else str(error.name)


def _attribute_name(error: AttributeError) -> str:
    """The dotted name of an attribute that was not found."""
    owner = error.obj
    if isinstance(owner, ModuleType):
        return f"{owner.__name__}.{error.name}"
    kind = owner if isinstance(owner, type) else type(owner)
    return f"{kind.__module__}.{kind.__qualname__}.{error.name}"
