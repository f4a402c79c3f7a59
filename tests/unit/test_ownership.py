"""Directories that others can write to are told from one's own."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from piecewise_core.compile import inductor
from piecewise_core.errors import CompilerUnavailable
from piecewise_core.ownership import foreign, is_ours, make_private
from piecewise_cpu.toolchain import CppToolchain
from piecewise_cpu.vector import probe_vector_isas


def test_what_is_made_is_this_user_s_alone_up_to_what_was_there(tmp_path):
    before = os.umask(0o002)
    try:
        make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for made in ("a", "a/b"):
        assert (tmp_path / made).stat().st_mode & 0o777 == 0o700
        assert foreign(tmp_path / made) is None


@pytest.mark.parametrize(
    ("mode", "group", "named"), [(0o777, False, "0777"), (0o770, True, "0770")]
)
def test_what_others_can_write_to_is_foreign(mode, group, named, tmp_path):
    tmp_path.chmod(mode)
    assert f"mode {named}" in str(foreign(tmp_path, group=group))


def test_a_group_may_be_allowed(tmp_path):
    tmp_path.chmod(0o775)
    assert foreign(tmp_path, group=False) is None


def test_another_user_s_directory_is_foreign_and_root_s_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4242)
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_uid=77, st_mode=0o40700))
    assert "belongs to user 77" in str(foreign(tmp_path))
    assert is_ours(SimpleNamespace(st_uid=0))


def test_inductor_s_directory_is_refused_where_others_write_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(CompilerUnavailable, match="users can put code there"):
        CppToolchain().require()
    with pytest.raises(CompilerUnavailable, match="users can put code there"):
        inductor._refuse_foreign_cache()


def test_probes_are_not_loaded_from_where_others_write(tmp_path):
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes").chmod(0o777)
    assert probe_vector_isas(tmp_path, {}, lambda builds, known: pytest.fail("loaded")) == {}
