"""Ten attacks on signed stores, tried with harmless input.

Those that a whole model or a command takes part in are in tests/integration/test_signed.py.
"""

from __future__ import annotations

import hmac
import io
import json
import logging
import os
import pickle
import random
import zipfile
from dataclasses import replace

import pytest
from mutated_artifacts import Subjects, replaced_meanwhile
from mutated_artifacts import put as lay

from piecewise_core.bundle.container import read_container, write_container
from piecewise_core.config import Config
from piecewise_core.errors import ConfigError, SignatureRefused, StoreError
from piecewise_core.store.files import ARTIFACT, FileStore
from piecewise_core.store.fleet.disk import Disk
from piecewise_core.store.fleet.leases import PATIENCE, TTL
from piecewise_core.store.fleet.level import Level
from piecewise_core.store.fleet.packing import name_of, pack, unpack
from piecewise_core.store.keys import Keys, new_key, read_keys
from piecewise_core.store.signing import Signer


@pytest.fixture
def subjects():
    pytest.importorskip("cryptography")
    return Subjects(random.Random(5), edwards=True)


class Marks:
    """A pickle that would leave a mark where anybody loaded it."""

    def __reduce__(self):
        return open, ("/tmp/piecewise-attacked", "w")


def test_1_a_pickle_in_an_unsigned_entry_is_never_loaded(root, make, subjects):
    evil = make(1, artifact=pickle.dumps(Marks()))
    FileStore(root).put(evil)
    assert FileStore(root, signer=subjects.signer).get(evil.manifest.key) is None
    with pytest.raises(SignatureRefused):
        unpack(subjects.signer, evil.manifest.key, pack(evil, b""))
    assert not os.path.exists("/tmp/piecewise-attacked")


def test_2_a_good_entry_under_another_name(root, subjects):
    one, two = subjects.good[:2]
    store = FileStore(root, signer=subjects.signer)
    lay(store, replace(one, key=two.key))
    assert store.get(two.key) is None
    assert store.get(one.key) is None


def test_3_a_signature_by_hmac_with_the_public_key(subjects):
    pair = next(key for key in subjects.keys.values() if key.algorithm == "ed25519")
    for algorithm in ("hmac-sha256", "ed25519"):
        for statement in (b"", subjects.good[0].manifest):
            mac = hmac.digest(pair.parts["public"], statement, "sha256").hex()
            forged = f"piecewise-signature 1 {algorithm} {pair.id} {mac}\n".encode()
            with pytest.raises(SignatureRefused) as caught:
                subjects.signer.check("entry", "k", 1, subjects.good[0].manifest, forged)
            assert caught.value.kind == "forged"


def test_4_files_that_are_replaced_between_check_and_use(tmp_path, subjects, caplog):
    caplog.set_level("CRITICAL")
    assert replaced_meanwhile(subjects, 100, tmp_path) == (0, pytest.approx(50, abs=50))


def test_5_a_link_to_a_file_that_only_this_user_can_read(root, subjects, tmp_path):
    store, one = FileStore(root, signer=subjects.signer), subjects.good[0]
    lay(store, one)
    (tmp_path / "secret").write_bytes(one.artifact)
    (store.path(one.key) / ARTIFACT).unlink()
    (store.path(one.key) / ARTIFACT).symlink_to(tmp_path / "secret")
    assert store.get(one.key) is None


def test_6_a_signed_manifest_with_another_artifact(root, subjects):
    store = FileStore(root, signer=subjects.signer)
    for one, two in zip(subjects.good, subjects.good[1:], strict=False):
        lay(store, replace(one, artifact=two.artifact))
        assert store.get(one.key) is None


def test_7_an_archive_that_would_fill_the_memory_is_refused_before_it_is_unpacked(
    tmp_path, subjects
):
    path = tmp_path / "bomb.pwb"
    write_container(path, {}, {"model.json": b"{}"})
    members = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("manifest.json", members.read("manifest.json"))
        bomb.writestr("model.json", bytes(100 << 20))
    with pytest.raises(SignatureRefused):
        read_container(path, subjects.signer)
    with pytest.raises(StoreError):
        read_container(path)


def test_8_a_lease_that_is_held_for_ever_or_in_ten_thousand_epochs(tmp_path, make, caplog):
    class Clock:
        time = 0.0

        def now(self):
            return self.time

        def sleep(self, seconds):
            self.time += seconds
            for lease in (tmp_path / "leases").rglob("1"):
                text = {"holder": "x", "beat": int(self.time * 1e6), "ttl": 1e9, "held": True}
                lease.write_text(json.dumps(text))

        def every(self, seconds, step):
            return lambda: None

    clock, key = Clock(), make(1).manifest.key
    level = Level(Disk(tmp_path, owned=True), clock=clock)
    folder = tmp_path / f"leases/{key[:2]}/{key}"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "1").write_text("{}")
    with level.lease(key) as held:
        assert not held
    assert TTL < clock.time < PATIENCE + 5
    before = clock.time
    with level.lease(key) as held:
        assert not held
    assert clock.time == before
    for epoch in range(1, 10_000):
        (folder / str(epoch)).write_text("{}")
    fresh = Level(Disk(tmp_path, owned=True), clock=clock)
    with fresh.lease(key) as held:
        assert not held
    assert clock.time == before
    assert fresh.publish(make(1))


def test_9_sizes_that_lie_and_an_object_without_end(tmp_path, make, subjects):
    key = make(1).manifest.key
    good = pack(make(1), b"")
    for bad in (
        good.replace(b"piecewise-entry 1", b"piecewise-entry 2"),
        b"piecewise-entry 1 " + b"9" * 4000,
        good + bytes(1 << 20),
        b"piecewise-entry 1 -1 0 0\n" + good,
    ):
        with pytest.raises(StoreError):
            unpack(None, key, bad)
    disk = Disk(tmp_path, owned=True)
    disk.write(name_of(key), bytes(1 << 20))
    assert len(disk.read(name_of(key), 1000)) == 1001
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StoreError, match="no plain file"):
        disk.read("fifo", 10)  # and nobody waits for a writer


def test_10_whoever_reads_logs_and_messages_learns_no_key(tmp_path, make, caplog):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "keys.json"
    key = new_key("a", "hmac-sha256", None, 0)
    path.touch(0o600)
    path.write_text(Keys({"a": key}, "a").text())
    secret = key.parts["secret"].hex()
    config = Config(trust="signed", sign_key=path)
    signer = Signer(read_keys(str(path), {}))
    store = FileStore(tmp_path / "store", signer=signer)
    FileStore(tmp_path / "store").put(make(1))
    store.get(make(1).manifest.key)
    store.put(make(1), replace=True)
    store.get(make(1).manifest.key)
    said = [caplog.text, repr(config), repr(signer), repr(signer._keys), config.to_json()]
    for wrong in ({"cache_url": f"s3://me:{secret}@b/"}, {"cache_url": secret}, {"trust": "x"}):
        with pytest.raises(ConfigError) as caught:
            Config(sign_key=secret, **wrong)
        if wrong.get("cache_url") != secret:
            said.append(str(caught.value))
    assert not [text for text in said if secret in text]
    assert secret.encode() not in pickle.dumps(config)
    files = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert len(files) == 3
    assert not [file for file in files if secret.encode() in file.read_bytes()]
