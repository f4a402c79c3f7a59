"""A store with ``trust="signed"``: what is not signed by a trusted key is a miss, never code."""

from __future__ import annotations

import logging
import os

import pytest

from piecewise_core.errors import StoreError
from piecewise_core.store.exchange import Archive, write_archive
from piecewise_core.store.files import SIGNATURE, FileStore
from piecewise_core.store.keys import Keys, new_key
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.misses import Miss
from piecewise_core.store.opening import open_store
from piecewise_core.store.signing import Signer


def signer_of(name="a", **more):
    key = new_key(name, "hmac-sha256", None, 0)
    return Signer(Keys({name: key}, name), **more)


@pytest.fixture
def signer():
    return signer_of()


@pytest.fixture
def counted():
    return {}


@pytest.fixture
def signed(root, signer, counted):
    ledger = Ledger()
    ledger.count = lambda name, more: counted.update({name: counted.get(name, 0) + more})
    store = FileStore(root, signer=signer, ledger=ledger)
    store.told = ledger.refused
    return store


def quarantined(store):
    folder = store.root / "quarantine"
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_what_is_put_is_signed_and_what_is_signed_is_got(signed, root, make):
    entry = make(1)
    assert signed.put(entry)
    found = signed.get(entry.manifest.key)
    assert found == entry
    assert found.signature
    assert FileStore(root).get(entry.manifest.key) == entry  # who trusts the owner asks for none
    assert list(signed.manifests()) == [entry.manifest]


def test_an_unsigned_entry_is_a_miss_that_stays_and_is_replaced(
    signed, root, make, counted, caplog
):
    entry = make(1)
    key = entry.manifest.key
    FileStore(root).put(entry)
    assert signed.get(key) is None
    assert signed.told == {key: "it is not signed"}
    assert counted == {"cache_refused": 1}
    assert f"entry {key[:12]}" in caplog.text
    assert quarantined(signed) == []
    assert FileStore(root).get(key) == entry
    assert signed.put(entry, replace=True)
    assert signed.get(key) == entry


@pytest.mark.parametrize("change", ["other", "moved", "bent"])
def test_a_signature_that_does_not_hold_puts_the_entry_into_quarantine(
    signed, signer, make, change, counted
):
    one, two = make(1), make(2)
    key, path = one.manifest.key, signed.path(one.manifest.key) / SIGNATURE
    signed.put(one)
    signed.put(two)
    if change == "other":
        path.write_bytes((signed.path(two.manifest.key) / SIGNATURE).read_bytes())
    elif change == "bent":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        signed.discard(key)
        signed.path(two.manifest.key).rename(signed.path(key))
    assert signed.get(key) is None
    assert len(quarantined(signed)) == 2
    assert counted == {"cache_refused": 1}


def test_what_a_key_signed_that_is_trusted_no_more_stays_for_others(signed, root, make):
    entry = make(1)
    FileStore(root, signer=signer_of("b")).put(entry)
    assert signed.get(entry.manifest.key) is None
    assert "signed by key b" in signed.told[entry.manifest.key]
    assert quarantined(signed) == []


def test_own_trust_with_a_key_signs_and_asks_for_no_signature(root, make, signer):
    maker = FileStore(root, signer=Signer(signer._keys, required=False))
    FileStore(root).put(make(1))
    maker.put(make(2))
    assert maker.get(make(1).manifest.key) == make(1)
    strict = FileStore(root, signer=signer)
    assert strict.get(make(1).manifest.key) is None
    assert strict.get(make(2).manifest.key) == make(2)


def test_who_can_only_verify_keeps_what_is_signed_and_nothing_else(root, make, signer):
    signed = FileStore(root / "1", signer=signer)
    signed.put(make(1))
    reader = FileStore(root / "2", signer=Signer(Keys(signer._keys.known, "")))
    assert not reader.put(make(2))
    assert reader.put(signed.get(make(1).manifest.key))
    assert reader.get(make(1).manifest.key) == make(1)


def test_an_archive_brings_signatures_along_and_is_refused_whole_without(
    root, tmp_path, make, signer
):
    store = FileStore(root, signer=signer)
    store.put(make(1))
    file, bare = tmp_path / "signed.zip", tmp_path / "unsigned.zip"
    write_archive(file, [store.get(make(1).manifest.key)])
    write_archive(bare, [make(1)])
    with Archive.open(file, 1 << 20, signer) as archive:
        (entry,) = archive.entries()
        assert entry == make(1)
        assert entry.signature
    with (
        pytest.raises(StoreError, match="not signed"),
        Archive.open(bare, 1 << 20, signer) as archive,
    ):
        list(archive.entries())


def test_opened_by_settings_it_signs_and_says_what_it_refused(tmp_path, make, signer, caplog):
    ledger = Ledger()
    store = open_store(tmp_path, {}, signer, ledger)
    assert store.put(make(1))
    with caplog.at_level(logging.WARNING):
        assert open_store(tmp_path, {}, signer_of("b"), ledger).get(make(1).manifest.key) is None
    why = ledger.refused[make(1).manifest.key]
    assert str(Miss(None, refused=why)).startswith("its entry was refused: it is signed by key a")
