"""From ``Config.cache_url`` to objects: directories by ourselves, everything else by fsspec."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from piecewise_core.errors import ConfigError
from piecewise_core.store.fleet.disk import Disk
from piecewise_core.store.fleet.objects import Object, Objects, ReadOnly

__all__ = ["open_url"]

_WHOLE = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oss", "s3", "s3a"})
"""Whose puts are whole or not at all; elsewhere objects are written aside and moved."""


def open_url(url: str, *, signed: bool) -> Objects:
    """The objects at ``url``; nothing is asked of it yet.

    ``signed``: whether everything from there must be signed. Raises ConfigError where it need not
    be and others may write there, and for what is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return Disk(Path(unquote(urlsplit(url).path)), owned=not signed)
    if not signed and scheme != "memory":
        raise ConfigError(
            f"Config.cache_url: whoever can write to a {scheme}:// URL would run code here, and "
            'trust="own" cannot tell who that is; set trust="signed" and sign_key (`piecewise '
            "cache keygen FILE` makes a key)"
        )
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"Config.cache_url: {scheme}:// cannot be opened ({error}); pip install "
            "'piecewise-core[fleet]' and what fsspec names for it (s3fs for s3://)"
        ) from error
    return _Spec(url, scheme)


class _Spec:
    """Objects below a URL of fsspec's, opened in each process anew."""

    def __init__(self, url: str, scheme: str) -> None:
        self._url = url.rstrip("/")
        self._whole = scheme in _WHOLE
        self._opened: tuple[int, Any, str] | None = None

    def where(self) -> str:
        return self._url.partition("?")[0]

    def read(self, name: str, limit: int) -> bytes | None:
        fs, root = self._fs()
        try:
            data: bytes = fs.cat_file(f"{root}/{name}", start=0, end=limit + 1)
        except (FileNotFoundError, IsADirectoryError):
            return None
        return data

    def create(self, name: str, data: bytes) -> bool:
        fs, root = self._fs()
        path = f"{root}/{name}"
        try:
            if not self._whole:
                if fs.exists(path):
                    return False
                self._move_in(fs, path, data)
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except NotImplementedError as error:
            raise ReadOnly(str(error) or type(error).__name__) from error
        return True

    def write(self, name: str, data: bytes) -> None:
        fs, root = self._fs()
        try:
            if self._whole:
                fs.pipe_file(f"{root}/{name}", data)
            else:
                self._move_in(fs, f"{root}/{name}", data)
        except NotImplementedError as error:
            raise ReadOnly(str(error) or type(error).__name__) from error

    def remove(self, name: str) -> None:
        fs, root = self._fs()
        try:
            fs.rm_file(f"{root}/{name}")
        except FileNotFoundError:
            return
        except NotImplementedError as error:
            raise ReadOnly(str(error) or type(error).__name__) from error

    def listed(self, folder: str) -> Iterator[Object]:
        fs, root = self._fs()
        try:
            found = fs.find(f"{root}/{folder}", detail=True)
        except FileNotFoundError:
            return
        for path, facts in sorted(found.items()):
            made = facts.get("LastModified") or facts.get("created") or facts.get("mtime") or 0.0
            when = made.timestamp() if hasattr(made, "timestamp") else float(made)
            yield Object(path[len(root) :].lstrip("/"), int(facts.get("size") or 0), when)

    def _move_in(self, fs: Any, path: str, data: bytes) -> None:
        aside = f"{path}.{secrets.token_hex(8)}"
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(aside, data)
        fs.mv(aside, path)

    def _fs(self) -> tuple[Any, str]:
        """The file system and the path in it; one of a parent process is of no use in a child."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            fs, root = fsspec.url_to_fs(
                self._url, use_listings_cache=False, skip_instance_cache=True
            )
            self._opened = os.getpid(), fs, root.rstrip("/")
        return self._opened[1], self._opened[2]
