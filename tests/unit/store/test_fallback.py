"""A directory that cannot be used costs one warning and no call; memory serves instead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from piecewise_core.errors import ConfigError
from piecewise_core.store.fallback import FallbackStore
from piecewise_core.store.files import FileStore
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.opening import open_store

OTHER = 54321


@pytest.fixture
def as_user(tmp_path_factory) -> Iterator[Path]:
    """A directory of this process's user, who is not root while the test runs."""
    if os.geteuid() != 0:
        yield tmp_path_factory.mktemp("user")
        return
    folder = Path("/tmp") / f"piecewise-{os.urandom(6).hex()}"
    folder.mkdir(mode=0o755)
    os.chown(folder, OTHER, OTHER)
    os.seteuid(OTHER)
    try:
        yield folder
    finally:
        os.seteuid(0)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def settings(root: Path, **more: str) -> dict[str, str]:
    return {"PIECEWISE_CACHE_DIR": str(root), **more}


def serves_from_memory(store, make, match: str) -> None:
    """One warning, whatever is put; what was put is got."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert store.put(make(1))
        assert store.put(make(2))
        assert store.get(make(1).manifest.key) == make(1)
        assert store.get(make(3).manifest.key) is None
        with store.lock(make(1).manifest.key):
            pass
    assert [w.category for w in caught] == [RuntimeWarning]
    assert re.search(match, str(caught[0].message)), caught[0].message
    assert "PIECEWISE_CACHE_MODE=off" in str(caught[0].message)
    labels = {m.label for m in store.manifests()}
    assert labels >= {"region 0 piece 1", "region 0 piece 2"}


def test_nothing_is_made_before_the_store_is_used(tmp_path, make):
    store = open_store(None, settings(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    assert store.get(make(1).manifest.key) is None
    assert (tmp_path / "cache" / "store" / "v1").is_dir()


def test_cache_dir_comes_before_the_user_s_cache(tmp_path, make):
    store = open_store(tmp_path / "mine", settings(tmp_path / "cache"))
    store.put(make(1))
    assert store.where() == str(tmp_path / "mine" / "store" / "v1")
    assert not (tmp_path / "cache").exists()


def test_a_read_only_directory_is_read_and_new_entries_stay_in_memory(as_user, make):
    FileStore(as_user / "store").put(make(0))
    for folder in (as_user / "store" / "v1", as_user / "store"):
        folder.chmod(0o500)
    store = open_store(None, settings(as_user))
    serves_from_memory(store, make, "cannot be written to")
    assert store.get(make(0).manifest.key) == make(0)
    for folder in (as_user / "store", as_user / "store" / "v1"):
        folder.chmod(0o700)


def test_a_directory_that_cannot_be_made_is_done_without(as_user, make):
    as_user.chmod(0o500)
    serves_from_memory(open_store(None, settings(as_user / "x")), make, "Permission denied")
    as_user.chmod(0o700)


def test_a_directory_of_another_user_is_not_used(tmp_path, make, only_root):
    FileStore(tmp_path / "store").put(make(0))
    os.chown(tmp_path / "store", OTHER, OTHER)
    store = open_store(None, settings(tmp_path))
    serves_from_memory(store, make, f"belongs to user {OTHER}.*would be executed")
    assert store.get(make(0).manifest.key) is None


def test_what_root_put_there_is_served_to_everybody(only_root, as_user, make):
    os.seteuid(0)
    FileStore(as_user / "store").put(make(0))
    for path in (as_user / "store").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (as_user / "store").chmod(0o755)
    os.seteuid(OTHER)
    with pytest.warns(RuntimeWarning, match="cannot be written to"):
        assert open_store(None, settings(as_user)).get(make(0).manifest.key) == make(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = open_store(None, settings(as_user, PIECEWISE_CACHE_MODE="readonly"))
        assert reader.get(make(0).manifest.key) == make(0)
        assert not reader.put(make(1))


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_a_directory_that_others_may_write_to_is_not_used(tmp_path, make, mode):
    FileStore(tmp_path / "store").put(make(0))
    (tmp_path / "store").chmod(mode)
    store = open_store(None, settings(tmp_path))
    serves_from_memory(store, make, "other users can put code there")
    assert store.get(make(0).manifest.key) is None


@pytest.mark.parametrize("name", ["store", "store/v1"])
def test_a_file_in_the_directory_s_place_is_not_used(tmp_path, make, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    serves_from_memory(open_store(None, settings(tmp_path)), make, "no directory|Not a directory")


FULL = """
    import os, resource, sys, warnings
    from pathlib import Path
    from piecewise_core.store.entry import make_entry, make_ticket
    from piecewise_core.store.opening import open_store
    from piecewise_core.ranges import Box

    def entry(number, size):
        ticket = make_ticket({"piece": str(number)}, Box(()))
        return make_entry(ticket, os.urandom(size), serves=Box(()), adaptor="acme")

    store = open_store(sys.argv[1], {})
    assert store.put(entry(0, 1000))
    LIMIT
    small, large, third = entry(1, 1000), entry(2, 1 << 20), entry(3, 1000)
    assert store.put(small)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert store.put(large)
        assert store.put(third)
    assert len(caught) == 1, caught
    assert "WHAT" in str(caught[0].message), caught[0].message
    for made in (small, large, third):
        assert store.get(made.manifest.key) == made
    root = Path(sys.argv[1], "store", "v1")
    assert not list((root / "tmp").iterdir()), "nothing half-written stays"
    assert open_store(sys.argv[1], {}).get(large.manifest.key) is None
    assert open_store(sys.argv[1], {}).get(small.manifest.key) == small
    print("served")
"""


def run_full(folder: Path, limit: str, what: str) -> None:
    script = textwrap.dedent(FULL).replace("LIMIT", limit).replace("WHAT", what)
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("served\n", 0), done.stderr


def test_a_file_that_the_system_will_not_let_grow_is_not_half_kept(tmp_path):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))"
    run_full(tmp_path, limit, "File too large")


def test_a_full_disk_is_told_once_and_memory_serves(tmp_path, only_root):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "piecewise", str(tmp_path)],
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a small file system")
    try:
        run_full(tmp_path, "", "No space left on device")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_modes(tmp_path, make):
    assert open_store(None, settings(tmp_path, PIECEWISE_CACHE_MODE="off")) is None
    memory = open_store(None, settings(tmp_path, PIECEWISE_CACHE_MODE="memory"))
    assert memory.put(make(1))
    assert not memory.put(make(1))
    assert memory.put(make(1), replace=True)
    assert not MemoryStore([make(1)], writable=False, name="a bundle").put(make(2))
    assert os.listdir(tmp_path) == []
    reader = open_store(None, settings(tmp_path, PIECEWISE_CACHE_MODE="readonly"))
    with pytest.warns(RuntimeWarning, match="No such file"):
        assert reader.get(make(1).manifest.key) is None
    assert not reader.put(make(1))
    with pytest.raises(ConfigError, match=r"PIECEWISE_CACHE_MODE='readonyl'.*did you mean 'reado"):
        open_store(None, settings(tmp_path, PIECEWISE_CACHE_MODE="readonyl"))


@pytest.mark.parametrize("text", ["-1", "0", "x", "1.5G", "G", "1" * 30])
def test_a_limit_that_is_no_size_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="PIECEWISE_CACHE_LIMIT"):
        open_store(None, settings(tmp_path, PIECEWISE_CACHE_LIMIT=text))


def test_a_store_that_fails_in_mid_flight_goes_on_reading(root, make, monkeypatch):
    inner = FileStore(root)
    inner.put(make(0))
    store = FallbackStore(lambda: inner)
    assert store.get(make(0).manifest.key) == make(0)
    # Where the temporary directory should be there is a file: nothing can be written any more.
    (inner.root / "tmp").rmdir()
    (inner.root / "tmp").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        assert store.put(make(1))
    assert {m.label for m in store.manifests()} == {"region 0 piece 0", "region 0 piece 1"}
    assert store.where() == "this process's memory"
