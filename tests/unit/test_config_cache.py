"""Where the user's cache is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from piecewise_core import config_cache
from piecewise_core.config_cache import cache_directory, store_directory
from piecewise_core.ownership import foreign


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


@pytest.mark.parametrize("name", ["PIECEWISE_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_tilde_is_the_home_in_variables_too(name):
    assert Path.home() / "mine" in [*cache_directory({name: "~/mine/p"}).parents]


def test_a_relative_xdg_place_is_ignored_as_its_specification_says():
    assert cache_directory({"XDG_CACHE_HOME": "here"}) == Path.home() / ".cache" / "piecewise"


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A process of a user without an entry and without HOME; its temporary files."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config_cache._homeless.cache_clear(), config_cache._temporary.cache_clear()
    yield tmp_path
    config_cache._homeless.cache_clear(), config_cache._temporary.cache_clear()


@pytest.mark.parametrize("environ", [{}, {"PIECEWISE_CACHE_DIR": "~/x"}, {"XDG_CACHE_HOME": "~"}])
def test_without_a_home_the_cache_is_private_among_temporary_files(homeless, environ, caplog):
    found = {cache_directory(environ) for _ in range(3)}
    (place,) = found
    assert place.parent == homeless
    assert place.stat().st_mode & 0o777 == 0o700
    assert [r.getMessage().count("no home directory") for r in caplog.records] == [1]


def test_without_a_home_a_directory_that_others_can_write_to_is_passed_over(homeless):
    (homeless / f"piecewise-{os.getuid()}").mkdir(mode=0o777)
    (homeless / f"piecewise-{os.getuid()}").chmod(0o777)
    place = cache_directory({})
    assert place.parent == homeless
    assert foreign(place) is None


def test_another_user_s_home_that_is_not_there_is_no_directory_of_that_name(homeless):
    assert store_directory("~nobody-of-that-name/x", {}).parent.parent == homeless
