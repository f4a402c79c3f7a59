"""The file of a bundle: whole or refused, whatever was done to it."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecewise_core.bundle.container import SCHEMA, read_container, write_container
from piecewise_core.errors import StoreError

KEY = "0" * 64
MEMBERS = {
    "model.json": b'{"a": 1}' * 50,
    "regions/0.json": b"[]",
    "regions/0.pt": bytes(range(256)),
    f"entries/{KEY}/manifest.json": b"{}",
    f"entries/{KEY}/artifact": random.Random(0).randbytes(600),
    "native/unchanged-0a.cpython-312-x86_64-linux-gnu.so": random.Random(1).randbytes(90),
}


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "x.pwb"
    write_container(path, {"model": "m"}, MEMBERS)
    return path


def test_what_was_written_is_read(bundle):
    assert read_container(bundle) == ({"model": "m"}, MEMBERS)
    assert os.listdir(bundle.parent) == ["x.pwb"]


def test_the_same_content_gives_the_same_file(bundle, tmp_path):
    other = tmp_path / "other.pwb"
    write_container(other, {"model": "m"}, MEMBERS)
    assert other.read_bytes() == bundle.read_bytes()


def test_every_flipped_byte_is_noticed_or_changes_nothing(bundle):
    data = bundle.read_bytes()
    for place in range(len(data)):
        bundle.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            found = read_container(bundle)
        except StoreError:
            continue
        # What nobody reads: times, attributes and the like in zip headers.
        assert found == ({"model": "m"}, MEMBERS), place


def test_every_truncation_is_noticed(bundle):
    data = bundle.read_bytes()
    for length in range(0, len(data), 7):
        bundle.write_bytes(data[:length])
        with pytest.raises(StoreError):
            read_container(bundle)


@given(st.binary(max_size=400))
@settings(max_examples=150)
def test_no_bytes_at_all_make_it_raise_anything_but_store_errors(data):
    path = f"/tmp/piecewise-fuzz-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            file.write(data)
        with pytest.raises(StoreError):
            read_container(path)
    finally:
        os.unlink(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
HEAD = st.fixed_dictionaries(
    {},
    optional={
        "schema": JSON | st.just(SCHEMA),
        "about": JSON,
        "members": JSON
        | st.dictionaries(st.sampled_from(["model.json", "../x"]), JSON, max_size=2),
        "checksum": JSON,
    },
)


@given(HEAD | JSON, st.booleans())
@settings(max_examples=150)
def test_no_manifest_makes_it_raise_anything_but_store_errors(head, sign):
    from piecewise_core.bundle import container

    if sign and isinstance(head, dict):
        head["checksum"] = container._checksum({k: v for k, v in head.items() if k != "checksum"})
    path = f"/tmp/piecewise-fuzz-head-{os.getpid()}"
    try:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", json.dumps(head))
            archive.writestr("model.json", b"{}")
        with pytest.raises(StoreError):
            read_container(path)
    finally:
        os.unlink(path)


def forged(path, members, listed=None):
    """A bundle whose manifest is right for ``members``, made by somebody who knows the form."""
    from piecewise_core.bundle import container

    entries = {n: [len(d), container._digest(d)] for n, d in members.items()}
    head = {"schema": SCHEMA, "about": {}, "members": {**entries, **(listed or {})}}
    head["checksum"] = container._checksum(head)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(head))
        for name, data in members.items():
            archive.writestr(name, data)


PATHS = ["../x", "/etc/x", "entries/../../x", "regions/0.sh", "a\\b", ""]
PATHS += ["native/../x", "native/..", "native/.hidden", "native/a/b.so", "native/", "native/a\\b"]


@pytest.mark.parametrize("name", PATHS)
def test_names_that_are_paths_are_refused(tmp_path, name):
    path = tmp_path / "x.pwb"
    forged(path, {name or "none": b"x"}, {} if name else {"model.json": [1, "0"]})
    with pytest.raises(StoreError):
        read_container(path)
    assert os.listdir(tmp_path) == ["x.pwb"]


def test_a_file_that_would_fill_memory_is_refused_before_it_does(tmp_path):
    path = tmp_path / "x.pwb"
    forged(path, {"model.json": bytes(200 << 20)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(StoreError, match="unpack"):
        read_container(path)


def test_a_header_that_lies_about_its_size_is_refused(tmp_path):
    path = tmp_path / "x.pwb"
    forged(path, {"model.json": bytes(1000)}, {"model.json": [10, "0" * 64]})
    with pytest.raises(StoreError, match="another size"):
        read_container(path)


def test_a_member_that_is_not_listed_and_one_that_is_there_twice_are_refused(bundle, tmp_path):
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("regions/7.json", b"[]")
    with pytest.raises(StoreError, match="not those it lists"):
        read_container(bundle)
    path = tmp_path / "twice.pwb"
    write_container(path, {}, MEMBERS)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model.json", b"{}")
    with pytest.raises(StoreError, match="two members"):
        read_container(path)


def test_another_form_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "x.pwb"
    monkeypatch.setattr("piecewise_core.bundle.container.SCHEMA", 1)
    write_container(path, {}, MEMBERS)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="form 1, and this version reads form 2"):
        read_container(path)


def test_no_file_no_zip_and_no_manifest_are_three_messages(tmp_path):
    with pytest.raises(StoreError, match="there is no bundle"):
        read_container(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreError, match="is no bundle"):
        read_container(tmp_path / "text")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", b"{}")
    (tmp_path / "zip").write_bytes(buffer.getvalue())
    with pytest.raises(StoreError, match="no manifest"):
        read_container(tmp_path / "zip")


def test_a_place_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_container(tmp_path / "missing" / "x.pwb", {}, MEMBERS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        write_container(tmp_path / "folder", {}, MEMBERS)
    assert os.listdir(tmp_path) == ["folder"]
