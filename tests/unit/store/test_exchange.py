"""Archives of entries: what is written is read, and nothing in one is trusted."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.errors import StoreError
from piecewise_core.store.exchange import Archive, write_archive
from piecewise_core.store.manifest import LARGEST, render

LIMIT = 1 << 20


def entries_in(path: Path, limit: int = LIMIT) -> list:
    with Archive.open(path, limit) as archive:
        return list(archive.entries())


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "entries.zip"


def written(path: Path, members: dict[str, bytes], *, twice: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(twice, members[twice])
    return path


def members_of(entry) -> dict[str, bytes]:
    key = entry.manifest.key
    return {f"{key}/manifest.json": render(entry.manifest), f"{key}/artifact": entry.artifact}


def refused(path: Path, match: str | None, limit: int = LIMIT) -> None:
    with pytest.raises(StoreError, match=match):
        entries_in(path, limit)


def test_what_is_written_is_read_and_equal_entries_give_equal_files(file, make, tmp_path):
    entries = sorted((make(n) for n in range(3)), key=lambda e: e.manifest.key)
    assert write_archive(file, entries) == 3
    assert entries_in(file) == entries
    write_archive(tmp_path / "again.zip", entries)
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()


def test_a_file_that_is_there_is_not_overwritten(file, make):
    file.write_bytes(b"mine")
    with pytest.raises(StoreError, match="cannot be written"):
        write_archive(file, [make(1)])
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "/etc/passwd",
        "a/../b",
        "C:\\evil",
        "0" * 64 + "/../../evil",
        "0" * 64 + "/manifest.json/x",
        "A" * 64 + "/artifact",
        "0" * 64 + "/",
    ],
)
def test_a_member_of_another_name_is_refused(file, make, name):
    refused(written(file, {**members_of(make(1)), name: b""}), "has a member|is no archive")


def test_half_an_entry_and_an_entry_given_twice_are_refused(file, make):
    members = members_of(make(1))
    for name, data in members.items():
        refused(written(file, {name: data}), "nothing else of it")
        refused(written(file, members, twice=name), "twice")


def test_an_entry_that_is_not_what_it_says_is_refused(file, make):
    one, two = members_of(make(1)), members_of(make(2))
    (manifest, artifact), (other, _) = one, two
    refused(written(file, {**one, artifact: b"evil"}), "artifact has 4 bytes")
    refused(written(file, {**one, artifact: b"e" * 100}), "SHA-256")
    refused(written(file, {**one, manifest: b"{}"}), "manifest")
    refused(written(file, {**one, manifest: two[other]}), "is that of")


def test_a_bomb_is_not_unpacked(file, make):
    bomb = make(1, artifact=bytes(50 << 20))
    write_archive(file, [bomb])
    assert file.stat().st_size < 1 << 17
    refused(file, "unpack to more than", limit=1 << 20)
    members = members_of(make(2))
    (manifest, artifact) = members
    refused(written(file, {**members, artifact: bytes(50 << 20)}), "unpacks to more than 100 bytes")
    refused(written(file, {**members, manifest: bytes(50 << 20)}), f"more than {LARGEST} bytes")


def test_a_member_that_lies_about_its_size_is_refused(file, make):
    write_archive(file, [make(1)])
    data = bytearray(file.read_bytes())
    # The unpacked size of each member, in the central directory.
    place = data.find(b"PK\x01\x02")
    struct.pack_into("<I", data, place + 24, 7)
    file.write_bytes(bytes(data))
    refused(file, None)


def test_every_truncation_is_refused(file, make):
    write_archive(file, [make(1)])
    data = file.read_bytes()
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        refused(file, None)


def test_a_flipped_byte_gives_whole_entries_or_an_error(file, make):
    entries = sorted((make(n) for n in range(2)), key=lambda e: e.manifest.key)
    write_archive(file, entries)
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            assert all(entry in entries for entry in entries_in(file))
        except StoreError:
            continue


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_raise_anything_else(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("archive") / "entries.zip"
    file.write_bytes(data)
    refused(file, None)


def test_an_encrypted_member_is_refused(file, make):
    write_archive(file, [make(1)])
    data = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(signature)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(signature, place + 4)
    file.write_bytes(bytes(data))
    refused(file, "encrypted|no archive")
    assert zipfile.is_zipfile(io.BytesIO(data))
