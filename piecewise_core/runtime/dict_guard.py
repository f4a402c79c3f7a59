"""Whether the dicts that hold a model's tensors, and the tensors themselves, are as they were.

A replaced parameter is a write to a dict; ``tensor.data = other`` leaves no trace but another
address, sizes, strides or dtype: ``w.data = w.data.t()`` keeps the address. Asking all from Python
costs tens of microseconds for 200 tensors, more than the rest of a call's checks. A small C module
asks in one: dicts tell of writes (CPython counts them, before 3.12 for each dict, since then
through a watcher), and torch exports the functions by which Inductor's compiled models ask. It is
built once per user and Python, where there is a C compiler, in a fifth of a second. Without it
Python asks.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from piecewise_core.compile.native_code import load_extension
from piecewise_core.compile.private_caches import private_directory
from piecewise_core.compile.source_library import SourceLibrary
from piecewise_core.torch_compat.storages import tensor_layout_functions

__all__ = ["CHANGED", "MOVED", "SAME", "DictGuard", "bring", "native", "take_along"]

logger = logging.getLogger(__name__)

SAME, CHANGED, MOVED = 0, 1, 2
"""What a check finds: nothing, a dict that may hold something else, a tensor that lies elsewhere or
otherwise."""

_SOURCE = Path(__file__).with_name("dict_guard.c")
_NAME = "piecewise_dict_guard"


class DictGuard:
    """Watches ``dicts``, and where and how ``tensors`` lie.

    ``check()`` gives SAME, CHANGED or MOVED. CHANGED may be a false alarm: look at what matters,
    after ``settle()``, which takes the dicts as they are now for what they should be. Without the C
    module ``check`` asks only ``some`` tensors.
    """

    check: Callable[[], int]
    settle: Callable[[], None]

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        tensors: Sequence[torch.Tensor],
        some: Sequence[torch.Tensor],
    ) -> None:
        module = native()
        if module is not None:
            self._natively(module, tuple(dicts), tuple(tensors))
        else:
            self._slowly(list(dicts), tuple(some))
        self.settle()

    def _natively(
        self, module: Any, dicts: tuple[dict[str, Any], ...], tensors: tuple[torch.Tensor, ...]
    ) -> None:
        functions = tensor_layout_functions()
        before = module.lies(functions, tensors)
        stamp = bytearray()
        self.settle = functools.partial(module.stamp, dicts, stamp)
        self.check = functools.partial(module.compare, dicts, stamp, functions, tensors, before)

    def _slowly(self, dicts: list[dict[str, Any]], tensors: tuple[torch.Tensor, ...]) -> None:
        held: list[dict[str, Any]] = []
        before = [*map(_lies, tensors)]

        def settle() -> None:
            held[:] = [dict(d) for d in dicts]

        def check() -> int:
            try:
                # Values are compared by identity first: what is unchanged costs a pointer.
                if dicts != held:
                    return CHANGED
            except Exception:  # two tensors of several elements were compared, so they differ
                return CHANGED
            return SAME if _lie_as(before, tensors) else MOVED

        self.settle, self.check = settle, check


def _lie_as(before: list[tuple[Any, ...]], tensors: tuple[torch.Tensor, ...]) -> bool:
    try:
        return [*map(_lies, tensors)] == before
    except RuntimeError:  # one has no strides any more: it is sparse now
        return False


def _lies(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@functools.cache
def native() -> Any:
    """The C module, built now if need be; None where it cannot be had."""
    try:
        return sys.modules.get(_NAME) or _started(_library().built(os.environ))
    except Exception as error:  # no compiler, no headers, no place to write, no watcher left
        logger.debug("parameters are compared in Python: %s", error)
        return None


def _started(path: Path) -> Any:
    tensor_layout_functions()  # an older or newer torch may have none
    module = load_extension(_NAME, path)
    module.stamp((), bytearray())  # since Python 3.12 this takes one of a few watchers
    return module


def take_along() -> dict[str, bytes]:
    """The built module, file name -> content, for ``bring`` elsewhere; empty without one."""
    try:
        made = Path(native().__file__)
        return {made.name: made.read_bytes()}
    except (AttributeError, OSError):
        return {}


def bring(files: Mapping[str, bytes]) -> None:
    """Use a module that ``take_along`` gave, in this process, unless there is one.

    It is no one else's: other programs build their own. That of another Python or version is left
    alone. Raises nothing: without it one is built.
    """
    try:
        name = _library().name
        unknown = _NAME not in sys.modules and _library().found(os.environ) is None
        if name in files and unknown:
            folder = tempfile.mkdtemp(dir=private_directory())  # it may be loaded already
            fresh = Path(folder, name)
            fresh.write_bytes(files[name])
            sys.modules[_NAME] = _started(fresh)
            native.cache_clear()
    except Exception as error:
        logger.debug("the module that was brought along cannot be used: %s", error)


def _library() -> SourceLibrary:
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    return SourceLibrary(_SOURCE, _command, suffix)


def _command(environ: Mapping[str, str]) -> list[str]:
    include = f"-I{sysconfig.get_paths()['include']}"
    return [*_compiler(environ), "-O2", "-shared", "-fPIC", include]


def _compiler(environ: Mapping[str, str]) -> list[str]:
    """The user's C compiler, as ``CC`` names it, or the system's. Raises FileNotFoundError."""
    chosen = environ.get("CC")
    if chosen:
        return shlex.split(chosen)
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            return [found]
    raise FileNotFoundError("no C compiler (cc, gcc, clang; CC names another)")
