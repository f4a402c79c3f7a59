"""Where the user's cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecewise_core.config_cache import cache_directory, store_directory


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PIECEWISE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/piecewise")),
        ({"XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "piecewise"),
    ],
)
def test_the_cache_is_where_the_user_says_or_where_caches_are(environ, expected):
    assert cache_directory(environ) == expected


def test_the_store_is_in_cache_dir_or_in_the_user_s_cache():
    assert store_directory(None, {"PIECEWISE_CACHE_DIR": "/a"}) == Path("/a/store")
    assert store_directory(Path("/mine"), {"PIECEWISE_CACHE_DIR": "/a"}) == Path("/mine/store")
    assert store_directory("~/mine", {}) == Path.home() / "mine" / "store"
