"""The store stays below its limit: what was used longest ago goes first."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from piecewise_core.store.directory import claim
from piecewise_core.store.pruning import BoundedStore, prune, total


def used(store, entry, when: float) -> None:
    os.utime(store.path(entry.manifest.key), (when, when))


def labels(store) -> set[str]:
    return {m.label.rpartition(" ")[2] for m in store.manifests()}


def test_the_least_recently_used_go_first(store, make):
    entries = [make(n, artifact=bytes(1000)) for n in range(6)]
    for n, entry in enumerate(entries):
        store.put(entry)
        used(store, entry, 1000.0 + n)
    store.get(entries[0].manifest.key)
    size = total(store) // 6
    done = prune(store, 4 * size)
    assert set(done.keys) == {e.manifest.key for e in entries[1:4]}
    assert labels(store) == {"0", "4", "5"}
    assert done.left == total(store) <= 4 * size
    assert done.freed >= 3 * 1000


def test_below_the_limit_nothing_goes(store, make):
    for n in range(3):
        store.put(make(n))
    assert prune(store, total(store)).keys == ()
    assert labels(store) == {"0", "1", "2"}


def test_putting_prunes(store, make):
    bounded = BoundedStore(store, limit=20_000)
    for n in range(40):
        assert bounded.put(make(n, artifact=bytes(1000)))
        used(store, make(n), 1000.0 + n)
        assert total(store) <= 20_000 + 2 * 20_000 // 16
    assert "39" in labels(store)
    assert "0" not in labels(store)


def test_what_is_larger_than_the_store_may_be_is_not_kept_and_moves_nothing_out(store, make):
    bounded = BoundedStore(store, limit=3000)
    assert bounded.put(make(1))
    assert not bounded.put(make(2, artifact=bytes(3000)))
    assert labels(store) == {"1"}


def test_a_use_in_the_future_or_before_1970_decides_only_the_order(store, make):
    for n, when in enumerate((4e9, -5e5, 1e9)):
        store.put(make(n, artifact=bytes(1000)))
        used(store, make(n), when)
    prune(store, total(store) * 2 // 3 + 200)
    assert labels(store) == {"0"}


WRITER = """
import os, sys
from pathlib import Path
from piecewise_core.store import files
from piecewise_core.store.entry import make_entry, make_ticket
from piecewise_core.ranges import Box

def wait(path):
    print(path, flush=True)
    sys.stdin.read()

files.sync = wait
ticket = make_ticket({"piece.form": "alive"}, Box(()))
files.FileStore(Path(sys.argv[1])).put(make_entry(ticket, b"x", serves=None, adaptor="acme"))
"""


def test_leftovers_of_dead_processes_go_and_what_is_being_written_stays(store, make):
    folder = store.root / "tmp" / f"{make(1).manifest.key}.0123"
    folder.mkdir(parents=True)
    (folder / "artifact").write_bytes(bytes(500))
    with store.lock(make(2).manifest.key):
        pass
    command = [sys.executable, "-c", WRITER, str(store.root.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        writing = Path(process.stdout.readline().decode().strip())
        assert prune(store, 1 << 30).freed == 500
        assert list((store.root / "tmp").iterdir()) == [writing]
        process.kill()
    assert prune(store, 1 << 30).freed > 0
    assert os.listdir(store.root / "tmp") == []
    assert f"{make(2).manifest.key}.lock" not in os.listdir(store.root / "locks")


def test_where_a_file_system_has_no_locks_nothing_is_taken_for_a_leftover(store, make, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = store.root / "tmp" / f"{make(1).manifest.key}.0123"
    folder.mkdir(parents=True)
    os.close(claim(folder))
    assert claim(folder, sure=True) is None
    prune(store, 1 << 30)
    assert folder.exists()
    assert store.put(make(1))
    assert store.get(make(1).manifest.key) == make(1)


def test_the_lock_of_whoever_compiles_stays(store, make):
    key = make(1).manifest.key
    with store.lock(key):
        prune(store, 1 << 30)
        assert f"{key}.lock" in os.listdir(store.root / "locks")


def test_a_store_that_may_not_be_written_to_is_not_pruned(store, make):
    store.put(make(1))
    store.writable = False
    assert prune(store, 0).keys == ()
    assert labels(store) == {"1"}


@pytest.mark.parametrize("limit", [0, 1])
def test_pruning_to_nothing_leaves_an_empty_store_that_works(store, make, limit):
    for n in range(3):
        store.put(make(n))
    assert len(prune(store, limit).keys) == 3
    assert store.put(make(1))
    assert store.get(make(1).manifest.key) == make(1)
    assert isinstance(store.root, Path)
