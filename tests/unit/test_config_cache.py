"""Where the user's cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecewise_core.config_cache import cache_directory


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
