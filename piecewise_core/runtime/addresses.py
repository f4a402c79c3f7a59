"""Whether tensors still lie where they lay: ``tensor.data = other`` leaves no other trace.

Asking a tensor from Python costs some 40 ns, 200 of them more than the rest of a call's checks
together. A C function of thirty lines asks all of them in a microsecond; it is built once per
user and Python, where there is a C compiler, in a fifth of a second. Without it Python asks.

Private name of torch, read in 2.11.0 and 2.13.0: ``_torchinductor_pyobject_tensor_data_ptr``, the
address of the C function by which Inductor's kernels take their arguments.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import shlex
import shutil
import stat
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from piecewise_core.config_cache import cache_directory

__all__ = ["Native", "native", "unmoved"]

logger = logging.getLogger(__name__)

Check = Callable[[], bool]
_SOURCE = Path(__file__).with_name("addresses.c")
_SECONDS = 30  # for a compiler that hangs


def unmoved(tensors: Sequence[torch.Tensor], some: Sequence[torch.Tensor]) -> Check:
    """A function that tells whether ``tensors`` are where they are now.

    Without the C function it looks at ``some`` of them. It holds references to the tensors.
    """
    compiled = native()
    if compiled is not None:
        return compiled(tuple(tensors))
    looked_at, data_ptr = tuple(some), torch.Tensor.data_ptr
    before = [t.data_ptr() for t in looked_at]
    return lambda: [*map(data_ptr, looked_at)] == before


Native = Callable[[tuple[torch.Tensor, ...]], Check]
"""Makes the check of a tuple of tensors."""


@functools.cache
def native() -> Native | None:
    """The C function, built now if need be; None where it cannot be had."""
    try:
        guards: Any = torch._C._dynamo.guards
        address_of = guards._torchinductor_pyobject_tensor_data_ptr
        module = _load(_built(os.environ))
    except Exception as error:  # no compiler, no headers, no place to write, another torch
        logger.debug("tensors' addresses are read from Python: %s", error)
        return None

    def check(tensors: tuple[torch.Tensor, ...]) -> Check:
        before = struct.pack(f"{len(tensors)}P", *(t.data_ptr() for t in tensors))
        return functools.partial(module.unmoved, address_of, tensors, before)

    return check


def _built(environ: Mapping[str, str]) -> Path:
    """The shared library, built and published by rename. Raises OSError and CalledProcessError."""
    source = _SOURCE.read_bytes()
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    key = hashlib.sha256(source + suffix.encode()).hexdigest()[:16]
    directory = cache_directory(environ) / "native"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(directory)
    made = directory / f"addresses-{key}{suffix}"
    digest = made.with_name(made.name + ".sha256")
    if _is_whole(made, digest):
        return made
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        fresh = Path(scratch) / made.name
        command = [*_compiler(environ), "-O2", "-shared", "-fPIC"]
        command += [f"-I{sysconfig.get_paths()['include']}", str(_SOURCE), "-o", str(fresh)]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        sums = Path(scratch) / digest.name
        sums.write_text(hashlib.sha256(fresh.read_bytes()).hexdigest(), encoding="ascii")
        os.replace(fresh, made)
        os.replace(sums, digest)
    return made


def _refuse_foreign(directory: Path) -> None:
    """What is loaded from here runs as this user, so nobody else may write here."""
    found = directory.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{directory} can be written to by others")


def _is_whole(made: Path, digest: Path) -> bool:
    try:
        return hashlib.sha256(made.read_bytes()).hexdigest() == digest.read_text(encoding="ascii")
    except OSError:
        return False


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


def _load(path: Path) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("piecewise_addresses", str(path))
    spec = importlib.util.spec_from_loader("piecewise_addresses", loader)
    if spec is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
