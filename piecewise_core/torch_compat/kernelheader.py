"""How Inductor builds its C++ kernels against a precompiled header, as commands to run before it.

Read in torch 2.13 and 2.14: ``CppPythonBindingsCodeCache`` compiles each kernel behind ``-include``
of a header that ``codecache._precompile_header`` makes when the first kernel waits for it: it is
preprocessed, named by what came out, the compiler and the flags, and compiled under a lock of that
name. The same steps are here. Where a torch takes others, the header lies where nobody looks, and
Inductor makes its own as ever.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecewise_core.torch_compat.lookup import needed

__all__ = ["KernelHeader", "kernel_header"]

_IN, _OUT, _HEADER = "@in", "@out", "@header"
"""What stands in commands for paths that come later; no part of an option that Inductor gives."""


@dataclass(frozen=True)
class KernelHeader:
    """The header of kernels for one instruction set, and the commands around it.

    ``text``: of the header. ``flags``: what its name depends on besides its contents.
    """

    text: str
    flags: str
    _directory: str
    _locks: str
    _preprocess: tuple[str, ...]
    _precompile: tuple[str, ...]
    _kernel: tuple[str, ...]

    def preprocess(self, source: Path, stem: Path) -> list[str]:
        """The command that writes what ``source``, a file with ``text``, includes to ``stem``.i."""
        return _with(self._preprocess, {_IN: str(source), _OUT: str(stem)})

    def place(self, preprocessed: bytes) -> tuple[Path, Path]:
        """Where Inductor looks for the header, which is written there, and its lock's file."""
        with needed():
            from torch._inductor.codecache import write
        extra = self.flags.replace("\0", hashlib.sha512(preprocessed).hexdigest())
        key, path = write(self.text, "h", extra=extra, specified_dir=self._directory)
        Path(self._locks).mkdir(parents=True, exist_ok=True)
        return Path(path), Path(self._locks, f"{key}.lock")

    def made(self, header: Path) -> Path:
        """Where the compiler looks for the precompiled form of ``header``."""
        return Path(self._precompile[-1].replace(_OUT, str(header)))

    def precompile(self, header: Path, out: Path) -> list[str]:
        """The command that writes the precompiled form of ``header`` to ``out``."""
        command = _with(self._precompile, {_IN: str(header)})
        return [*command[:-1], str(out)]

    def kernel(self, header: Path, source: Path, stem: Path) -> list[str]:
        """The command that makes the library ``stem``.so of ``source``, as it does of kernels."""
        named = {_HEADER: str(header), _IN: str(source), _OUT: str(stem)}
        return _with(self._kernel, named)


def kernel_header(isa: Any) -> KernelHeader | None:
    """What Inductor does for kernels of the instruction set ``isa``, with its switches as they are.

    None where it precompiles nothing. Raises TorchUnsupported and AttributeError.
    """
    with needed():
        from torch._inductor import codecache, config
        from torch._inductor.codecache import CppPythonBindingsCodeCache as Kernels
        from torch._inductor.cpp_builder import CppTorchDeviceOptions, get_compiler_version_info

        directory, locks = codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR
        header = Kernels._get_uncompiled_header("cpu")
    if not config.cpp_cache_precompile_headers or header is None:
        return None
    how = {**Kernels.cpp_compile_command_flags, "device_type": "cpu", "vec_isa": isa}
    how["use_relative_path"] = False
    plain = CppTorchDeviceOptions(compile_only=False, min_optimize=False, **how)
    flags = " ".join(_text("o", "i", plain))
    version = get_compiler_version_info(plain.get_compiler())
    before = CppTorchDeviceOptions(min_optimize=False, preprocessing=True, **how)
    making = CppTorchDeviceOptions(min_optimize=False, precompiling=True, **how)
    plain.precompiled_header = _HEADER
    commands = (_text(_OUT, _IN, before), _text(_OUT, _IN, making), _text(_OUT, _IN, plain))
    preprocess, precompile, kernel = (tuple(shlex.split(*found)) for found in commands)
    if not precompile[-1].startswith(_OUT):
        return None
    extra = f"{flags}\0{version}"
    text = f"#include <{header}>\n"
    return KernelHeader(text, extra, directory, locks, preprocess, precompile, kernel)


def _text(name: str, source: str, options: Any) -> tuple[str]:
    from torch._inductor.cpp_builder import CppBuilder

    return (CppBuilder(name=name, sources=source, BuildOption=options).get_command_line(),)


def _with(command: tuple[str, ...], named: Mapping[str, str]) -> list[str]:
    found = list(command)
    for mark, path in named.items():
        found = [part.replace(mark, path) for part in found]
    return found
