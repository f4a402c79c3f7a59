"""What is left of a piece that Inductor compiled to native code, and its form on disk.

On disk it is a zip archive: the cut-down source, the kernels as shared libraries and, only where
torch's own wrappers have work to do around the call, what torch pickles of them (ADR 10). Loading
one starts no compiler and imports no compiler.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from piecewise_core.compile.wrapper_source import NotPortable, cut_down
from piecewise_core.config_cache import cache_directory
from piecewise_core.interpreter import variables
from piecewise_core.torch_compat.storages import tensor_address_function

__all__ = [
    "Call",
    "NativeCode",
    "from_bytes",
    "from_module",
    "is_archive",
    "load_extension",
    "to_bytes",
    "torchs_own",
]

Call = Callable[[list[Any]], Sequence[Any]]
"""Inductor's generated function: takes its arguments in a list, which it empties."""

_FORMAT = 3
_ADDRESS = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
"""Variable in which a kernel's library looks for torch's function that gives a tensor's address."""


@dataclass(frozen=True)
class NativeCode:
    """One piece's code.

    ``source``: defines ``call``. ``kernels``: name -> shared library. ``library``: names of torch's
    functions that it calls as ``extern_kernels``. ``wrappers``: torch's pickle, or nothing.
    ``autocast``: whether it was compiled inside of it, so that its conversions are in the code.
    ``chosen``: which functions ``library`` means, where the compiler knows several.
    """

    source: str
    kernels: Mapping[str, bytes]
    library: tuple[str, ...]
    wrappers: bytes = b""
    autocast: bool = False
    chosen: str = ""

    def call(self, library: Callable[[str], Any] | None = None) -> Call:
        """The generated function over the loaded kernels.

        ``library``: gives the function of a name in ``library``; by default torch's own.
        """
        find = library or torchs_own
        names: dict[str, Any] = {
            "extern_kernels": SimpleNamespace(**{n: find(n) for n in self.library}),
            **_loaded(self.kernels),
        }
        exec(compile(self.source, "<piecewise compiled piece>", "exec"), names)
        made: Call = names["call"]
        return made


def torchs_own(name: str) -> Any:
    """The function that Inductor means by ``extern_kernels.NAME``."""
    return getattr(torch, name)


def from_module(source: str, module: Any, wrappers: bytes = b"") -> NativeCode:
    """Take over the generated ``source`` and the kernels of ``module``, which was made of it.

    Raises NotPortable.
    """
    reduced = cut_down(source)
    kernels = {name: _library_file(name, getattr(module, name, None)) for name in reduced.kernels}
    for name in reduced.library:
        if getattr(module.extern_kernels, name) is not getattr(torch, name, None):
            raise NotPortable(f"extern_kernels.{name} is none of torch's functions")
    return NativeCode(reduced.text, kernels, reduced.library, wrappers)


def _library_file(name: str, kernel: Any) -> bytes:
    """The shared library that a kernel's function lies in."""
    path = getattr(getattr(kernel, "__self__", None), "__file__", None)
    if not path:
        raise NotPortable(f"kernel {name} lies in no library of its own")
    return Path(path).read_bytes()


# Bytes ------------------------------------------------------------------------------


def to_bytes(code: NativeCode) -> bytes:
    """The archive."""
    buffer = io.BytesIO()
    head = {
        "format": _FORMAT,
        "kernels": sorted(code.kernels),
        "library": code.library,
        "autocast": code.autocast,
        "chosen": code.chosen,
    }
    members: dict[str, str | bytes] = {
        "piece.json": json.dumps(head),
        "call.py": code.source,
        "wrappers.pkl": code.wrappers,
    }
    for place, name in enumerate(sorted(code.kernels)):
        members[f"kernels/{place}.so"] = code.kernels[name]
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            # Its date is no clock's, so that equal code gives equal bytes.
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def is_archive(data: bytes) -> bool:
    """Whether ``data`` is what ``to_bytes`` gives."""
    return data.startswith(b"PK")


def from_bytes(data: bytes) -> NativeCode:
    """Read an archive. Raises ValueError for another format, and what zipfile raises."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        head = json.loads(archive.read("piece.json"))
        if head["format"] != _FORMAT:
            raise ValueError(f"compiled piece of format {head['format']}, not {_FORMAT}")
        kernels = {
            name: archive.read(f"kernels/{place}.so") for place, name in enumerate(head["kernels"])
        }
        source = archive.read("call.py").decode()
        wrappers = archive.read("wrappers.pkl")
        facts = head["autocast"], head["chosen"]
        return NativeCode(source, kernels, tuple(head["library"]), wrappers, *facts)


# Loading ----------------------------------------------------------------------------


def _loaded(kernels: Mapping[str, bytes]) -> dict[str, Callable[..., Any]]:
    """Each kernel's function. The files are gone again when they are loaded."""
    if not kernels:
        return {}
    problem: Exception | None = None
    for directory in (None, str(cache_directory(os.environ))):
        try:
            with (
                tempfile.TemporaryDirectory(prefix="piecewise-", dir=directory) as folder,
                # Where libraries, while they load, find torch's function; as Inductor does.
                variables({_ADDRESS: str(tensor_address_function())}),
            ):
                return {name: _kernel(data, Path(folder)) for name, data in kernels.items()}
        except (ImportError, OSError) as error:  # mounted noexec, full, not there
            problem = error
    raise ImportError(
        f"compiled kernels cannot be loaded ({problem}); set TMPDIR to a directory that programs "
        "may be run from"
    ) from problem


def _kernel(data: bytes, folder: Path) -> Callable[..., Any]:
    # Python keeps extension modules by path: a name that repeats must mean the same library.
    path = folder / f"{sha256(data).hexdigest()}.so"
    path.write_bytes(data)
    found: Callable[..., Any] = load_extension(f"piecewise_kernels_{path.stem}.kernel", path).kernel
    return found


def load_extension(name: str, path: Path) -> Any:
    """The extension module called ``name`` whose library is ``path``. Raises ImportError."""
    loader = ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise ImportError(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
