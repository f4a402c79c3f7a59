"""The second level: leases, publishing, what is believed, what happens where it does not answer."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings

import pytest
from fleet_simulation import parser, simulate

from piecewise_core.errors import ConfigError
from piecewise_core.store.entry import make_entry, make_ticket
from piecewise_core.store.files import FileStore
from piecewise_core.store.fleet.disk import Disk
from piecewise_core.store.fleet.leases import PATIENCE, TTL, Leases
from piecewise_core.store.fleet.level import Level
from piecewise_core.store.fleet.objects import Object, ReadOnly
from piecewise_core.store.fleet.packing import name_of, pack
from piecewise_core.store.fleet.store import FleetStore
from piecewise_core.store.fleet.urls import open_url
from piecewise_core.store.keys import Keys, new_key
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.opening import open_store
from piecewise_core.store.signing import Signer
from piecewise_core.store.single_flight import single_flight


class Steps:
    """A clock that goes on only where somebody sleeps; ``beats`` are called by hand."""

    def __init__(self):
        self.time, self.beats = 100.0, []
        self.meanwhile = lambda: None

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        self.meanwhile()

    def every(self, seconds, step):
        self.beats.append(step)
        return lambda: self.beats.remove(step) if step in self.beats else None


class Held:
    """Objects in a dict; ``wrong`` is raised by each operation, if set."""

    def __init__(self):
        self.objects, self.asked, self.wrong = {}, [], None
        self.clock, self.seconds = None, 0.0

    def where(self):
        return "held://"

    def _ask(self, *what):
        self.asked.append(what)
        if self.clock is not None:
            self.clock.time += self.seconds
        if self.wrong is not None:
            raise self.wrong

    def read(self, name, limit):
        self._ask("read", name)
        found = self.objects.get(name)
        return None if found is None else found[: limit + 1]

    def create(self, name, data):
        self._ask("create", name)
        return self.objects.setdefault(name, data) is data

    def write(self, name, data):
        self._ask("write", name)
        self.objects[name] = data

    def remove(self, name):
        self._ask("remove", name)
        self.objects.pop(name, None)

    def listed(self, folder):
        self._ask("listed", folder)
        for name, data in sorted(self.objects.items()):
            if name.startswith(folder):
                yield Object(name, len(data), 0.0)


@pytest.fixture
def objects():
    return Held()


@pytest.fixture
def clock():
    return Steps()


@pytest.fixture
def counted():
    return {}


@pytest.fixture
def level(objects, clock, counted):
    return level_of(objects, clock, counted)


def level_of(objects, clock, counted=None, **more):
    ledger = Ledger()
    if counted is not None:
        ledger.count = lambda name, n: counted.update({name: counted.get(name, 0) + n})
    return Level(objects, ledger=ledger, clock=clock, chaos=random.Random(0), **more)


def signer_of(name="a", required=True):
    key = new_key(name, "hmac-sha256", None, 0)
    return Signer(Keys({name: key}, name), required=required)


# What is there ----------------------------------------------------------------------------


def test_what_one_machine_publishes_another_fetches_and_keeps(objects, clock, make, counted):
    one = FleetStore(MemoryStore(), level_of(objects, clock, counted))
    local = MemoryStore()
    other = FleetStore(local, level_of(objects, clock, counted))
    assert one.put(make(1))
    assert other.get(make(1).manifest.key) == make(1)
    assert local.get(make(1).manifest.key) == make(1)
    asked = len(objects.asked)
    assert other.get(make(1).manifest.key) == make(1)
    assert len(objects.asked) == asked
    assert counted["fleet_published"] == counted["fleet_hits"] == 1
    assert counted["fleet_bytes"] == len(objects.objects[name_of(make(1).manifest.key)])
    assert counted["fleet_saved_ms"] == 1500


@pytest.mark.parametrize(
    "change", ["flipped", "cut", "longer", "moved", "sizes", "empty", "huge"]
)  # fmt: skip
def test_what_is_damaged_is_a_miss_and_is_replaced(level, objects, make, change, caplog):
    level.publish(make(1))
    key = make(1).manifest.key
    good = objects.objects[name_of(key)]
    bad = {
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:-1],
        "longer": good + b"\0",
        "moved": pack(make(2), b""),
        "sizes": good.replace(b" ", b" 0", 2),
        "empty": b"",
        "huge": b"piecewise-entry 1 9999999999 9999999999 9999999999\n" + good,
    }[change]
    objects.objects[name_of(key)] = bad
    assert level.fetch(key) is None
    assert "is damaged" in caplog.text
    assert level.check(key)
    assert level.publish(make(1))
    assert level.fetch(key) == make(1)


def test_signatures_are_asked_for_and_those_of_other_keys_stay(objects, clock, make, counted):
    mine, others = signer_of("a"), signer_of("b")
    key = make(1).manifest.key
    reader = level_of(objects, clock, counted, signer=mine)
    level_of(objects, clock, signer=others).publish(make(1))
    before = objects.objects[name_of(key)]
    assert reader.fetch(key) is None
    assert counted["cache_refused"] == 1
    assert not reader.publish(make(1))
    assert objects.objects[name_of(key)] == before
    objects.objects[name_of(key)] = pack(make(1), b"")
    assert reader.fetch(key) is None
    assert reader.publish(make(1))
    assert reader.fetch(key) == make(1)
    assert list(reader.manifests()) == [make(1).manifest]


def test_what_is_fetched_is_kept_with_its_signature(root, objects, clock, make):
    signer = signer_of()
    level_of(objects, clock, signer=signer).publish(make(1))
    reader = Signer(Keys(signer._keys.known, ""))  # it cannot sign
    local = FileStore(root, signer=reader)
    store = FleetStore(local, level_of(objects, clock, signer=reader))
    assert store.get(make(1).manifest.key) == make(1)
    assert local.get(make(1).manifest.key) == make(1)
    assert not store.put(make(2))
    assert len(objects.objects) == 1


# Leases ------------------------------------------------------------------------------------


def test_one_holds_and_the_other_waits_until_it_is_published(objects, clock, make):
    one, other = level_of(objects, clock), level_of(objects, clock)
    key = make(1).manifest.key
    with one.lease(key) as first:
        assert first

        def meanwhile():
            clock.meanwhile = lambda: None
            one.publish(make(1))

        clock.meanwhile = meanwhile
        with contextlib.ExitStack() as stack:
            leave = one._held[key]
            stack.callback(lambda: None)
            clock.meanwhile = lambda: (one.publish(make(1)), leave.release(published=True))
            with other.lease(key) as second:
                assert not second
    assert other.fetch(key) == make(1)
    assert not [name for name in objects.objects if name.startswith("leases")]


def test_the_lease_of_a_dead_holder_is_taken_over_after_its_time_and_not_before(objects, clock):
    dead = Leases(objects, clock, random.Random(0)).acquire("k" * 64, lambda: False)
    clock.beats.clear()
    begun = clock.now()
    taken = Leases(objects, clock, random.Random(1)).acquire("k" * 64, lambda: False)
    assert taken.epoch == dead.epoch + 1
    assert TTL < clock.now() - begun < TTL + 5
    assert taken.holds()
    assert not dead.holds()


def test_a_holder_that_lives_is_waited_for_and_not_for_ever(objects, clock):
    Leases(objects, clock, random.Random(0)).acquire("k" * 64, lambda: False)
    beat = clock.beats[0]
    clock.meanwhile = lambda: beat()
    begun = clock.now()
    level = level_of(objects, clock)
    with level.lease("k" * 64) as held:
        assert not held
    assert PATIENCE < clock.now() - begun < PATIENCE + 5
    begun = clock.now()
    with level.lease("k" * 64) as held:
        assert not held
    assert clock.now() == begun  # nobody is waited for again


def test_a_late_holder_publishes_over_nothing(objects, clock, make):
    late, other = level_of(objects, clock), level_of(objects, clock)
    key = make(1).manifest.key
    newer, older = make(1, artifact=b"newer"), make(1, artifact=b"older")
    with late.lease(key) as held:
        assert held
        clock.beats.clear()
        with other.lease(key) as taken:
            assert taken
            assert not late.publish(older)  # fenced, though there is nothing yet
            assert other.publish(newer)
        assert not late.publish(older)  # nor where the other has gone
    assert other.fetch(key) == newer


def test_a_lease_that_nobody_here_wrote_is_waited_for_no_longer_than_others(objects, clock):
    for text in (b"", b"{}", b"[1]", b'{"holder": 1}', b"\xff" * 2000):
        objects.objects = {f"leases/kk/{'k' * 64}/1": text}
        begun = clock.now()
        lease = Leases(objects, clock, random.Random(0)).acquire("k" * 64, lambda: False)
        assert lease.epoch == 2
        assert clock.now() - begun < TTL + 5
    forever = b'{"holder": "x", "beat": 0, "ttl": 1e9, "held": true}'
    objects.objects = {f"leases/kk/{'k' * 64}/1": forever}
    begun = clock.now()
    Leases(objects, clock, random.Random(0)).acquire("k" * 64, lambda: False)
    assert clock.now() - begun < TTL + 5


def test_who_fails_to_make_it_lets_the_next_one_try_at_once(objects, clock, make):
    one, other = level_of(objects, clock), level_of(objects, clock)
    key = make(1).manifest.key
    with contextlib.suppress(ValueError), one.lease(key):
        raise ValueError
    begun = clock.now()
    with other.lease(key) as held:
        assert held
    assert clock.now() == begun


def test_an_answer_that_got_lost_does_not_lose_the_lease(objects, clock):
    create = objects.create

    def lost(name, data):
        create(name, data)
        return False

    objects.create = lost
    assert Leases(objects, clock, random.Random(0)).acquire("k" * 64, lambda: False).epoch == 1


def test_who_only_reads_takes_no_lease(objects, clock, make):
    reader = level_of(objects, clock, writable=False)
    with reader.lease("k" * 64) as held:
        assert not held
    assert not reader.publish(make(1))
    assert objects.objects == {}


# Where it does not answer ------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), ValueError("no credentials"), RuntimeError("odd")]
)
def test_a_level_that_does_not_answer_is_one_warning_and_asked_again_later(
    level, objects, clock, make, error
):
    level.publish(make(1))
    key = make(1).manifest.key
    store = FleetStore(MemoryStore(), level)
    objects.wrong = error
    with pytest.warns(RuntimeWarning, match=r"held://, does not answer .*cache_url"):
        assert store.get(key) is None
    with store.lock(key):  # warnings are errors here
        store.put(make(2))
    assert str(error) in level.state()
    asked = len(objects.asked)
    assert store.get(key) is None
    assert len(objects.asked) == asked
    clock.time += 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.get(key) is None  # still down: tried once, and said in the log
        assert len(objects.asked) == asked + 1
        objects.wrong = None
        clock.time += 1000
        assert store.get(key) == make(1)
    assert "in use" in level.state()


def test_a_request_that_fails_once_is_made_again(level, objects, make, recwarn):
    level.publish(make(1))
    read, failures = objects.read, [OSError("reset"), OSError("reset")]

    def sometimes(name, limit):
        if failures:
            raise failures.pop()
        return read(name, limit)

    objects.read = sometimes
    assert level.fetch(make(1).manifest.key) == make(1)
    assert not recwarn.list


def test_one_that_hangs_is_left_alone(objects, make, monkeypatch):
    import threading

    from piecewise_core.store.fleet import health

    monkeypatch.setattr(health, "_UNKNOWN", 0.2)
    never = threading.Event()
    objects.read = lambda name, limit: never.wait()
    level = Level(objects)
    with pytest.warns(RuntimeWarning, match="no answer within"):
        assert level.fetch(make(1).manifest.key) is None
    never.set()


def test_a_place_that_takes_nothing_is_read(level, objects, clock, make):
    level.publish(make(1))
    reader = level_of(objects, clock)

    def refused(*args):
        raise ReadOnly("a web server")

    objects.create = objects.write = objects.remove = refused
    with reader.lease("k" * 64) as held:
        assert not held
    assert not reader.publish(make(2))
    assert reader.fetch(make(1).manifest.key) == make(1)
    assert "read only" in reader.state()


def test_asking_stops_where_it_takes_longer_than_compiling_and_says_so(
    objects, clock, caplog, make
):
    slow = level_of(objects, clock)
    for number in range(20):
        slow.publish(make(number, seconds=0.2))
    reader = level_of(objects, clock)
    objects.clock, objects.seconds = clock, 0.3
    found = [reader.fetch(make(number).manifest.key) for number in range(20)]
    assert [entry is not None for entry in found] == [True] * 8 + [False] * 12
    assert caplog.text.count("is not asked any more") == 1
    assert "not asked any more, since asking for 8 pieces took 2.4 s" in reader.state()
    with reader.lease("k" * 64) as held:
        assert not held
    objects.seconds = 0.1
    assert all(level_of(objects, clock).fetch(make(n).manifest.key) for n in range(20))


def test_the_first_machine_of_all_goes_on_asking_though_it_finds_nothing(objects, clock, make):
    level = level_of(objects, clock)
    objects.clock, objects.seconds = clock, 0.1
    for number in range(20):
        assert level.fetch(make(number).manifest.key) is None
        assert level.publish(make(number, seconds=5.0))
    assert "in use" in level.state()


# Where it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["file://{}", "memory://{}"])
def test_two_stores_share_a_url(tmp_path, make, url):
    if url.startswith("memory"):
        pytest.importorskip("fsspec")
    url = url.format(tmp_path / "shared")
    one, other = (open_store(tmp_path / name, {}, url=url) for name in "ab")
    key = make(1).manifest.key
    with one.lock(key) as held:
        assert held
        assert one.put(make(1))
    assert other.get(key) == make(1)
    objects = open_url(url, signed=False)
    assert not objects.create(name_of(key), b"other")
    assert [found.name for found in objects.listed("v1/entries")] == [name_of(key)]
    assert list(objects.listed("leases")) == []
    objects.write("x/y", b"1")
    objects.write("x/y", b"23")
    assert objects.read("x/y", 0) == b"2"
    assert objects.read("x/y", 9) == b"23"
    objects.remove("x/y")
    objects.remove("x/y")
    assert objects.read("x/y", 9) is None
    assert other.get(make(2).manifest.key) is None


def test_a_url_that_others_can_write_to_needs_signatures(tmp_path):
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigError, match=r'would run code here.*trust="signed"'):
        open_store(tmp_path, {}, url="s3://bucket/x")
    with pytest.raises(ConfigError, match="nosuch:// cannot be opened"):
        open_store(tmp_path, {}, signer_of(), url="nosuch://x")
    with pytest.raises(ConfigError, match="would run code here"):
        open_store(tmp_path, {}, signer_of(required=False), url="s3://bucket/x")


def test_a_shared_directory_that_others_can_write_to_is_not_read_unsigned(tmp_path, make):
    shared = tmp_path / "shared"
    Level(Disk(shared, owned=True)).publish(make(1))
    assert Level(Disk(shared, owned=True)).fetch(make(1).manifest.key) == make(1)
    shared.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"does not answer .*mode 0777"):
        assert Level(Disk(shared, owned=True)).fetch(make(1).manifest.key) is None
    signer = signer_of()
    assert Level(Disk(shared, owned=False), signer).fetch(make(1).manifest.key) is None
    assert Level(Disk(shared, owned=False), signer).publish(make(2))
    assert Level(Disk(shared, owned=False), signer).fetch(make(2).manifest.key) == make(2)


def test_links_and_files_of_others_are_not_followed(tmp_path, make, only_root):
    import os

    disk, key = Disk(tmp_path / "shared", owned=True), make(1).manifest.key
    Level(disk).publish(make(1))
    path = tmp_path / "shared" / name_of(key)
    os.chown(path, 12345, -1)
    with pytest.warns(RuntimeWarning, match="belongs to user 12345"):
        assert Level(disk).fetch(key) is None
    os.chown(path, 0, -1)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match="does not answer"):
        assert Level(disk).fetch(key) is None


def test_the_oldest_entries_are_removed_past_a_limit(tmp_path, make):
    import os

    level = Level(Disk(tmp_path, owned=True))
    for number in range(4):
        level.publish(make(number))
        os.utime(tmp_path / name_of(make(number).manifest.key), (number, number))
    size = (tmp_path / name_of(make(0).manifest.key)).stat().st_size
    done = level.prune(2 * size + 10)
    assert done.keys == (make(0).manifest.key, make(1).manifest.key)
    assert done.left <= 2 * size + 10
    assert set(level.all_keys()) == {make(2).manifest.key, make(3).manifest.key}


# Many ---------------------------------------------------------------------------------------


@pytest.fixture
def quiet(caplog):
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_of_many_machines_one_compiles_each_piece(quiet):
    found = simulate(parser().parse_args(["--workers", "24", "--pieces", "4", "--bytes", "1000"]))
    assert (found["compilations"], found["ready"], found["died"]) == (4, 24, 0)
    assert found["counters"]["fleet_hits"] == 23 * 4


def test_of_machines_that_die_holding_a_lease_others_take_over(quiet):
    asked = ["--workers", "12", "--pieces", "6", "--crashes", "0.4", "--bytes", "1000"]
    found = simulate(parser().parse_args(asked))
    assert found["died"] > 0
    assert found["ready"] == 12 - found["died"]
    assert found["compilations"] == 6 + found["died"]


class Trip:
    def __init__(self, log, entry):
        self.log, self.entry = log, entry

    def load(self, entry):
        self.log.append("loaded")
        return entry

    def prepare(self):
        self.log.append("prepared")

    def make(self):
        self.log.append("made")
        return self.entry

    def take(self):
        return self.entry


def test_single_flight_goes_through_both_levels(objects, clock, make):
    log, entry = [], make(1)
    ticket = make_ticket(entry.manifest.factors, entry.manifest.box)
    for _ in range(2):
        store = FleetStore(MemoryStore(), level_of(objects, clock))
        assert single_flight(store, ticket, Trip(log, entry)) == entry
    assert log == ["prepared", "made", "loaded"]
    assert make_entry(ticket, b"x", serves=None, adaptor="a").manifest.key == entry.manifest.key
