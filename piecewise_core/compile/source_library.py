"""A library of our own that the system's compiler makes, once per user and kind of machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piecewise_core.config_cache import cache_directory
from piecewise_core.ownership import foreign, make_private

__all__ = ["SourceLibrary"]


@dataclass(frozen=True)
class SourceLibrary:
    """The library of one source file, kept in ``native/`` of the user's cache.

    ``command``: the compiler and its options, for an environment; it may raise OSError. ``suffix``:
    of the library's name. ``factors``: what tells builds of one source apart. ``seconds``: for a
    compiler that hangs.
    """

    source: Path
    command: Callable[[Mapping[str, str]], Sequence[str]]
    suffix: str = ".so"
    factors: str = ""
    seconds: float = 30

    @property
    def name(self) -> str:
        """The file's name, which tells its source and what it is for."""
        told = self.source.read_bytes() + self.suffix.encode() + self.factors.encode()
        return f"{self.source.stem}-{hashlib.sha256(told).hexdigest()[:16]}{self.suffix}"

    def built(self, environ: Mapping[str, str]) -> Path:
        """The library, built if need be. Raises OSError and subprocess.SubprocessError."""
        made, digest = self._places(environ)
        if not _is_whole(made, digest):
            with tempfile.TemporaryDirectory(dir=made.parent) as folder:
                fresh = Path(folder, made.name)
                command = [*self.command(environ), str(self.source), "-o", str(fresh)]
                subprocess.run(command, check=True, capture_output=True, timeout=self.seconds)
                _publish(fresh, made, digest)
        return made

    def found(self, environ: Mapping[str, str]) -> Path | None:
        """The library if it was built before, as it was."""
        try:
            made, digest = self._places(environ)
        except OSError:
            return None
        return made if _is_whole(made, digest) else None

    def _places(self, environ: Mapping[str, str]) -> tuple[Path, Path]:
        """Where the library lies, and its checksum; their directory is made."""
        directory = cache_directory(environ) / "native"
        make_private(directory)
        others = foreign(directory)
        if others is not None:  # what is loaded from here runs as this user
            raise PermissionError(others)
        made = directory / self.name
        return made, made.with_name(made.name + ".sha256")


def _publish(fresh: Path, made: Path, digest: Path) -> None:
    sums = fresh.with_name(digest.name)
    sums.write_text(hashlib.sha256(fresh.read_bytes()).hexdigest(), encoding="ascii")
    os.replace(fresh, made)
    os.replace(sums, digest)


def _is_whole(made: Path, digest: Path) -> bool:
    try:
        return hashlib.sha256(made.read_bytes()).hexdigest() == digest.read_text(encoding="ascii")
    except OSError:
        return False
