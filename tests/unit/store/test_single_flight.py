"""One key is made once: looked for, locked, looked for again, made, published."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from piecewise_core.errors import StoreError
from piecewise_core.store.entry import Entry, Ticket
from piecewise_core.store.files import FileStore
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.single_flight import single_flight


class LoggingStore(MemoryStore):
    """A store in memory that notes its lock; ``meanwhile``: what happens before one gets it."""

    def __init__(self, log: list[str], meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.log = log
        self.meanwhile = meanwhile

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        self.meanwhile()
        self.log.append("lock")
        try:
            yield True
        finally:
            self.log.append("unlock")


class Trip:
    """A flight that notes what it is asked, and loads all but what ``refused`` holds."""

    def __init__(self, log: list[str], entry: Entry | None, refused: tuple[bytes, ...] = ()):
        self.log = log
        self.entry = entry
        self.refused = refused

    def load(self, entry: Entry) -> bytes | None:
        self.log.append("load")
        return None if entry.artifact in self.refused else entry.artifact

    def prepare(self) -> None:
        self.log.append("prepare")

    def make(self) -> Entry | None:
        self.log.append("make")
        return self.entry

    def take(self) -> bytes:
        self.log.append("take")
        return b"made"


def ticket_of(entry: Entry) -> Ticket:
    known = entry.manifest
    return Ticket(known.key, known.factors, known.box, known.label)


def test_what_the_store_has_is_loaded_without_a_lock(make):
    log: list[str] = []
    store = LoggingStore(log)
    store.put(make(artifact=b"there"))
    assert single_flight(store, ticket_of(make()), Trip(log, make())) == b"there"
    assert log == ["load"]


def test_what_it_has_not_is_made_and_published_inside_the_lock_and_taken_outside(make):
    log: list[str] = []
    store, entry = LoggingStore(log), make(artifact=b"new")
    assert single_flight(store, ticket_of(entry), Trip(log, entry)) == b"made"
    assert log == ["prepare", "lock", "make", "unlock", "take"]
    assert store.get(entry.manifest.key) == entry


def test_a_refused_entry_is_replaced(make):
    log: list[str] = []
    store, entry = LoggingStore(log), make(artifact=b"new")
    store.put(make(artifact=b"bad"))
    assert single_flight(store, ticket_of(entry), Trip(log, entry, (b"bad",))) == b"made"
    assert log == ["load", "prepare", "lock", "make", "unlock", "take"]
    assert store.get(entry.manifest.key) == entry


@pytest.mark.parametrize("first", [None, b"bad"])
def test_what_another_process_made_meanwhile_is_loaded_after_the_lock(make, first):
    log: list[str] = []
    store = LoggingStore(log)
    store.meanwhile = lambda: store.put(make(artifact=b"theirs"), replace=True)
    if first is not None:
        store.put(make(artifact=first))
    trip = Trip(log, make(artifact=b"new"), (b"bad",))
    assert single_flight(store, ticket_of(make()), trip) == b"theirs"
    assert "make" not in log
    assert log[-3:] == ["lock", "unlock", "load"]


def test_what_another_process_made_and_nobody_here_can_load_is_made_here(make):
    log: list[str] = []
    store, entry = LoggingStore(log), make(artifact=b"new")
    store.meanwhile = lambda: store.put(make(artifact=b"bad"), replace=True)
    assert single_flight(store, ticket_of(entry), Trip(log, entry, (b"bad",))) == b"made"
    assert log.count("make") == 1
    assert store.get(entry.manifest.key) == entry


def test_what_is_not_to_be_kept_is_not_published(make):
    log: list[str] = []
    store = LoggingStore(log)
    assert single_flight(store, ticket_of(make()), Trip(log, None)) == b"made"
    assert store.get(make().manifest.key) is None


@pytest.mark.parametrize("has_store", [True, False])
def test_without_a_store_or_a_ticket_it_is_made_and_nothing_is_looked_for(make, has_store):
    log: list[str] = []
    store = LoggingStore(log) if has_store else None
    ticket = None if has_store else ticket_of(make())
    assert single_flight(store, ticket, Trip(log, make())) == b"made"
    assert log == ["prepare", "make", "take"]
    assert store is None or store.get(make().manifest.key) is None


def test_a_store_that_cannot_keep_it_costs_a_warning_and_no_result(make, caplog):
    class Full(LoggingStore):
        def put(self, entry: Entry, *, replace: bool = False) -> bool:
            raise StoreError("no room")

    log: list[str] = []
    assert single_flight(Full(log), ticket_of(make()), Trip(log, make())) == b"made"
    assert "is not kept: no room" in caplog.text


def test_an_error_in_making_leaves_the_lock_free_and_reaches_the_caller(make):
    class Broken(Trip):
        def make(self) -> Entry | None:
            raise ValueError("broken")

    log: list[str] = []
    with pytest.raises(ValueError, match="broken"):
        single_flight(LoggingStore(log), ticket_of(make()), Broken(log, None))
    assert log == ["prepare", "lock", "unlock"]


def test_threads_that_start_together_on_one_directory_make_it_once(make, root):
    log: list[str] = []
    entry = make(artifact=b"new")
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        single_flight(FileStore(root, timeout=30), ticket_of(entry), Trip(log, entry))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.count("make") == 1
    assert log.count("load") + log.count("take") == 4
