"""Which C++ compiler Inductor would use, and where it builds."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from piecewise_core.building_blocks import config_if_imported

__all__ = ["Compiler", "build_directory", "find_compiler", "wanted_compilers"]


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that runs. ``version``: first line of ``--version``; ``mtime_ns``: of path."""

    path: str
    version: str
    mtime_ns: int


def wanted_compilers(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names that Inductor looks for, in its order: ``config.cpp.cxx``, which comes from CXX."""
    config = config_if_imported()
    if config is None:  # importing it takes a second, and would only read CXX
        return (environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"),)
    named = config.cpp.cxx
    listed = named if isinstance(named, (list, tuple)) else (named,)
    # None stands for a compiler that Inductor may download; nothing here downloads.
    return tuple(name for name in listed if name)


def find_compiler(
    names: tuple[str, ...], environ: Mapping[str, str], timeout: float
) -> Compiler | None:
    """The first of ``names`` that is an executable on PATH and answers ``--version``.

    ``timeout``: seconds for each. A name with arguments ("ccache g++") is no executable, neither
    here nor for Inductor.
    """
    for name in names:
        path = shutil.which(name, path=environ.get("PATH"))
        version = None if path is None else _version(path, environ, timeout)
        if path is not None and version is not None:
            return Compiler(path, version, os.stat(path).st_mtime_ns)
    return None


def build_directory(environ: Mapping[str, str]) -> str:
    """Where Inductor writes and loads what it builds; the rule is torch's, without importing it."""
    directory = environ.get("TORCHINDUCTOR_CACHE_DIR")
    if directory is None:
        name = "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", _user())
        directory = os.path.join(tempfile.gettempdir(), name)
    return os.path.abspath(directory)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        return f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown_user"


def _version(path: str, environ: Mapping[str, str], timeout: float) -> str | None:
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            check=True,
            env={**environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.decode(errors="replace").splitlines() or ["(no version)"])[0].strip()
