"""Entries in a directory: whole or absent, whatever happens to their files."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from piecewise_core.errors import StoreError
from piecewise_core.ownership import make_private
from piecewise_core.store.files import ARTIFACT, MANIFEST, FileStore


def quarantined(store: FileStore) -> list[str]:
    folder = store.root / "quarantine"
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_what_is_put_is_got_and_the_first_stays(store, make):
    entry = make(1)
    assert store.get(entry.manifest.key) is None
    assert store.put(entry)
    assert not store.put(make(1, artifact=b"other"))
    assert store.get(entry.manifest.key) == entry
    assert FileStore(store.root.parent).get(entry.manifest.key) == entry


def test_an_entry_can_be_replaced(store, make):
    old, new = make(1), make(1, artifact=b"new")
    store.put(old)
    assert store.put(new, replace=True)
    assert store.get(old.manifest.key) == new
    assert os.listdir(store.root / "tmp") == []


def test_a_look_up_lists_no_directory(store, make, monkeypatch):
    entry = make(1)
    store.put(entry)

    def forbidden(*args):
        raise AssertionError("a look-up that lists costs more with every entry")

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, forbidden)
    assert store.get(entry.manifest.key) == entry
    assert store.get(make(2).manifest.key) is None


def test_directories_are_private_and_files_too(store, make, root):
    old = os.umask(0)
    try:
        store.put(make(1))
        with store.lock(make(1).manifest.key):
            pass
    finally:
        os.umask(old)
    path = store.path(make(1).manifest.key)
    folders = [root, store.root, *store.root.rglob("*")]
    assert all(f.stat().st_mode & 0o777 == 0o700 for f in folders if f.is_dir())
    assert {f.stat().st_mode & 0o777 for f in path.iterdir()} == {0o600}


@pytest.mark.parametrize("name", [MANIFEST, ARTIFACT])
def test_every_flipped_byte_of_either_file_is_found_and_the_entry_made_anew(store, make, name):
    entry = make(1)
    store.put(entry)
    key, path = entry.manifest.key, store.path(entry.manifest.key) / name
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
        assert store.check(key)
        if place % 32 and place != len(good) - 1:
            continue
        assert store.get(key) is None
        assert not path.exists()
        assert store.put(entry)
        assert store.get(key) == entry
    path.write_bytes(good)
    assert store.get(key) == entry


@pytest.mark.parametrize("name", [MANIFEST, ARTIFACT])
def test_every_truncation_of_either_file_is_found(store, make, name):
    entry = make(1)
    store.put(entry)
    key, path = entry.manifest.key, store.path(entry.manifest.key) / name
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert store.check(key)
        if length % 32 == 0:
            assert store.get(key) is None
            assert store.put(entry)
    path.write_bytes(good + b"\0")
    assert store.get(key) is None
    assert store.put(entry)
    path.unlink()
    assert store.get(key) is None
    assert store.put(entry)
    assert store.get(key) == entry


def test_what_was_damaged_lies_in_quarantine_with_the_reason_and_one_warning(store, make, caplog):
    entry = make(1)
    store.put(entry)
    (store.path(entry.manifest.key) / ARTIFACT).write_bytes(b"evil")
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        assert store.get(entry.manifest.key) is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "the artifact has 4 bytes and not 100" in caplog.text
    moved, reason = quarantined(store)
    assert (store.root / "quarantine" / moved / ARTIFACT).read_bytes() == b"evil"
    assert "4 bytes" in (store.root / "quarantine" / reason).read_text()


def test_an_entry_under_another_key_is_not_served(store, make):
    one, two = make(1), make(2)
    store.put(one)
    make_private(store.path(two.manifest.key).parent)
    os.rename(store.path(one.manifest.key), store.path(two.manifest.key))
    assert store.get(two.manifest.key) is None
    assert len(quarantined(store)) == 2


@pytest.mark.parametrize("kind", ["link to an entry", "link to a file", "fifo", "file"])
def test_what_is_no_plain_entry_is_not_followed(store, make, kind, tmp_path):
    one, two = make(1), make(2)
    store.put(one)
    store.put(two)
    path = store.path(two.manifest.key)
    if kind == "link to an entry":
        os.rename(path, tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "link to a file":
        os.rename(path / ARTIFACT, tmp_path / "artifact")
        (path / ARTIFACT).symlink_to(tmp_path / "artifact")
    elif kind == "fifo":
        (path / ARTIFACT).unlink()
        os.mkfifo(path / ARTIFACT)
    else:
        os.rename(path, tmp_path / "elsewhere")
        path.write_bytes(b"")
    assert store.get(two.manifest.key) is None
    assert store.put(two)
    assert store.get(two.manifest.key) == two
    assert store.get(one.manifest.key) == one


@pytest.mark.parametrize("name", [MANIFEST, ARTIFACT])
def test_a_file_of_another_user_is_not_served(store, make, name, only_root):
    entry = make(1)
    store.put(entry)
    os.chown(store.path(entry.manifest.key) / name, 54321, 54321)
    assert store.get(entry.manifest.key) is None
    assert len(quarantined(store)) == 2


@pytest.mark.parametrize("depth", range(3))
@pytest.mark.parametrize("linked", [False, True])
def test_what_another_user_put_in_place_of_a_folder_is_not_served(
    store, make, depth, linked, tmp_path, only_root
):
    """[65] The folder of an entry, or one above it in the store; or a link to it."""
    entry = make(1)
    store.put(entry)
    folder = [store.path(entry.manifest.key), *store.path(entry.manifest.key).parents][depth]
    theirs = tmp_path / "theirs"
    shutil.copytree(folder, theirs)
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, 54321, 54321)
        path.chmod(0o755)
    shutil.rmtree(folder)
    if linked:
        folder.symlink_to(theirs)
    else:
        theirs.rename(folder)
    assert FileStore(store.root).get(entry.manifest.key) is None
    assert all(path.stat().st_uid == 54321 for path in (theirs if linked else folder).rglob("*"))


def test_readers_see_whole_entries_or_none_while_others_delete_and_replace(store, make):
    entries = [make(1, artifact=bytes([n]) * 50_000) for n in range(4)]
    key, stop, seen, wrong = entries[0].manifest.key, threading.Event(), [], []

    def churn() -> None:
        for n in range(150):
            store.put(entries[n % 4], replace=True)
            if n % 3 == 0:
                store.discard(key)
        stop.set()

    def read() -> None:
        while not stop.is_set():
            found = store.get(key)
            seen.append(found is not None)
            if found is not None and found not in entries:
                wrong.append(found)

    threads = [threading.Thread(target=t) for t in (churn, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert quarantined(store) == []
    assert any(seen)


def test_an_entry_in_the_making_is_not_seen(store, make, monkeypatch):
    entry, seen = make(1), []

    def rename(source, target):
        seen.append(store.get(entry.manifest.key))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        store.put(entry)
    assert seen == [None]
    monkeypatch.undo()
    assert store.get(entry.manifest.key) is None
    assert os.listdir(store.root / "tmp") == []
    assert store.put(entry)


def test_a_store_that_may_not_be_written_to_changes_nothing(store, make, root):
    good, bad = make(1), make(2)
    store.put(good)
    store.put(bad)
    (store.path(bad.manifest.key) / ARTIFACT).write_bytes(b"evil")
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in root.rglob("*"))
    reader = FileStore(root, writable=False)
    assert reader.get(good.manifest.key) == good
    assert reader.get(bad.manifest.key) is None
    assert not reader.put(make(3))
    with reader.lock(good.manifest.key) as held:
        assert not held
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in root.rglob("*")) == before


@pytest.mark.parametrize("key", ["", "..", "a/b", "A" * 64, "0" * 63, "../" * 20])
def test_what_is_no_key_reaches_no_file(store, key):
    with pytest.raises(StoreError, match="is no key"):
        store.get(key)


def test_a_clock_that_jumps_harms_nothing(store, make, monkeypatch):
    for number, now in enumerate((0.0, 4e9, -1e6)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        entry = make(number, made=int(max(0, now)))
        store.put(entry)
        os.utime(store.path(entry.manifest.key), (now, now))
        assert store.get(entry.manifest.key) == entry
    assert len(list(store.manifests())) == 3


# Locks ---------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from piecewise_core.store.files import FileStore
with FileStore(Path(sys.argv[1])).lock(sys.argv[2]) as held:
    print(held, flush=True)
    time.sleep(600)
"""


def holder(root: Path, key: str) -> subprocess.Popen[str]:
    """Another process that holds the lock of ``key``."""
    command = [sys.executable, "-c", HOLDER, str(root), key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_lock_is_one_process_s_and_is_free_when_its_holder_is_killed(root, make):
    store = FileStore(root, timeout=0.2)
    key = make(1).manifest.key
    with holder(root, key) as process:
        with store.lock(key) as held:
            assert not held
        with store.lock(make(2).manifest.key) as held:
            assert held
        process.send_signal(signal.SIGKILL)
        process.wait()
    with FileStore(root, timeout=30).lock(key) as held:
        assert held


def test_whoever_waits_for_a_lock_gets_it_as_soon_as_the_holder_dies(root, make):
    key = make(1).manifest.key
    with holder(root, key) as process:
        threading.Timer(0.3, process.kill).start()
        with FileStore(root, timeout=60).lock(key) as held:
            assert held
            assert process.wait() == -signal.SIGKILL


def test_where_locks_cannot_be_made_work_goes_on_without(store, make, caplog):
    (store.root / "locks").write_bytes(b"no directory")
    with store.lock(make(1).manifest.key) as held:
        assert not held
    assert "without the lock" in caplog.text
