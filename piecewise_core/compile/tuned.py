"""Which of its configurations each Triton kernel of a piece runs in, kept with the piece's code.

Inductor builds a kernel in several and measures them at its first launch. Its own cache of what won
goes by where the kernel's source lay, so code that comes from a file is measured anew: that takes
long, and where another one wins, sums may round otherwise than in the process that made the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from piecewise_core.torch_compat.inductor import configurations, keep_one, kernel_source

__all__ = ["choose", "pack", "unpack"]


def pack(artifact: bytes, kernels: Sequence[Any], known: Mapping[str, str] | None = None) -> bytes:
    """``artifact`` behind a line that says what is chosen by now.

    ``kernels``: of its code. ``known``: what it was loaded with.
    """
    found = {kernel_source(k): c[0] for k in kernels if len(c := configurations(k)) == 1}
    return json.dumps({**(known or {}), **found}, sort_keys=True).encode() + b"\n" + artifact


def unpack(data: bytes) -> tuple[dict[str, str], bytes]:
    """What was chosen, and the artifact. Raises ValueError for what was not packed."""
    chosen, _, artifact = data.partition(b"\n")
    return dict(json.loads(chosen)), artifact


def choose(kernels: Sequence[Any], chosen: Mapping[str, str]) -> None:
    """Have each of ``kernels`` run as ``chosen``; one that cannot is measured."""
    for kernel in kernels:
        found = configurations(kernel)
        name = chosen.get(kernel_source(kernel))
        if len(found) > 1 and name is not None and found.count(name) == 1:
            keep_one(kernel, found.index(name))
