"""What Inductor's code depends on besides the graph: torch itself, and every switch it has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch

from piecewise_core.torch_compat.inductor import inductor_config, switch_defaults, torch_key

__all__ = ["inductor_factors"]

_PLACES = re.compile(r"(^|[._])(log_?path|path|dir|lib|cxx|cuda_cxx)$")
"""Names of switches that say where something lies, not what is generated. Which C++ compiler is
used is among them: built code serves where there is another, or none."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def inductor_factors(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value. ``settings``: Inductor's, as this compiler changes them."""
    portable = inductor_config().save_config_portable(ignore_private_configs=False)
    switches = {n: _text(v) for n, v in portable.items() if not _PLACES.search(n)}
    whole = "\n".join(f"{n}={v}" for n, v in sorted(switches.items()))
    return {
        "torch": torch.__version__,
        "torch_key": _torch_key(),
        "threads": str(torch.get_num_threads()),
        "inductor": hashlib.sha256(whole.encode()).hexdigest()[:16],
        "inductor.changed": _changed(switches),
        **{f"inductor.{n}": repr(v) for n, v in sorted(settings.items())},
    }


def _torch_key() -> str:
    """What tells this torch from any other.

    A release is told by its commit. Of a torch built from a checkout, whose files change without
    one, the files are read.
    """
    commit = torch.version.git_version
    released = re.fullmatch(r"\d+\.\d+\.\d+(\+(cpu|cu\d+|rocm[\d.]+|xpu))?", torch.__version__)
    if commit and released:
        return commit
    return torch_key().hex()


def _changed(switches: Mapping[str, str]) -> str:
    """The switches that are not at their defaults, for a person who asks why nothing was found."""
    defaults = switch_defaults()
    names = (n for n in sorted(switches) if n in defaults and switches[n] != _text(defaults[n]))
    return "; ".join(f"{n} = {switches[n]}" for n in names)


def _text(value: Any) -> str:
    """A switch's value. One that holds a function is equal to itself only, in this process."""
    found = value if isinstance(value, str) else repr(value)
    own = getattr(value, "uuid", None)
    if callable(own) and _ADDRESS.search(found):
        return f"{type(value).__qualname__} {own()!r}"
    return found
