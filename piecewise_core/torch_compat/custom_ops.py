"""What stands behind operators made in Python; known in 2.11 to 2.13.

Without ``OPDEFS``, ``_backend_fns`` or ``_disabled_kernel`` the dispatcher is asked, as for any
other operator. There is no fallback for fake kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._library import simple_registry

__all__ = ["fake_kernel", "fake_of", "kernels"]


def kernels(name: str) -> Mapping[Any, Callable[..., Any]]:
    """Device type, or None for all, -> kernel of a ``custom_op``; empty where it cannot be told."""
    try:
        from torch._library.custom_ops import OPDEFS
    except ImportError:
        return {}
    definition: Any = OPDEFS.get(name)
    if definition is None or getattr(definition, "_disabled_kernel", None):
        return {}
    found: Mapping[Any, Callable[..., Any]] = getattr(definition, "_backend_fns", {})
    return found


def fake_kernel(name: str) -> Any:
    """The function registered from Python as the fake kernel of an operator, or None."""
    return getattr(simple_registry.singleton.find(name).fake_impl.kernel, "func", None)


def fake_of(definition: Any) -> Any:
    """The fake kernel of what ``torch.library.custom_op`` returned, or None."""
    return getattr(definition, "_abstract_fn", None)
