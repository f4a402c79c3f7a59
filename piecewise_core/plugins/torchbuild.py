"""Which device stacks the installed torch was built for, found without importing it.

``import torch`` takes a second and may fail on the very machine that a probe has to judge.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["torch_build"]

_LINE = re.compile(r"^(__version__|cuda|hip|xpu)\b[^=]*= *(?:'([^']*)'|None)", re.MULTILINE)


def torch_build() -> Mapping[str, str] | None:
    """``version`` of torch, and of what it was built for ``cuda``, ``hip`` or ``xpu``.

    None where there is no torch.
    """
    loaded: Any = sys.modules.get("torch")
    if loaded is not None and hasattr(loaded, "version"):
        text = "\n".join(
            f"{name} = {getattr(loaded.version, name, None)!r}"
            for name in ("__version__", "cuda", "hip", "xpu")
        )
    else:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        try:
            text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
        except OSError:
            return None
    return {name.strip("_"): value for name, value in _LINE.findall(text) if value}
