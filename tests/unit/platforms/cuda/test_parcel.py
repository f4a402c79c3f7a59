"""A piece and the files that it brings, as one archive."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.compile.native_code import NativeCode, to_bytes
from piecewise_cuda.parcel import pack, unpack

FILES = {"KEY/a.so": b"\x7fELF", "KEY/b.json": b"{}", "TWIN/a.so": b"\x7fELF"}


@given(st.binary(), st.dictionaries(st.text(min_size=1), st.binary()))
def test_what_is_packed_is_unpacked(piece, files):
    assert unpack(pack(piece, files)) == (piece, files)


def test_equal_content_gives_equal_bytes():
    assert pack(b"piece", FILES) == pack(b"piece", dict(reversed(FILES.items())))


def test_files_of_one_content_are_kept_once():
    with zipfile.ZipFile(io.BytesIO(pack(b"piece", FILES))) as archive:
        assert archive.namelist() == ["inductor", "triton.json", "triton/0", "triton/1"]


@pytest.mark.parametrize(
    "piece",
    [b"", b"an artifact of torch's", to_bytes(NativeCode("", {}, ()))],
    ids=["none", "of torch", "native"],
)
def test_a_piece_without_files_is_left_as_it_is(piece):
    assert unpack(piece) == (piece, {})


def test_a_damaged_archive_is_an_error():
    whole = pack(b"piece" * 100, FILES)
    with pytest.raises(zipfile.BadZipFile):
        unpack(whole[:-30])
    flipped = bytearray(whole)
    flipped[60] ^= 1
    with pytest.raises(zipfile.BadZipFile):
        unpack(bytes(flipped))


@pytest.mark.parametrize(
    "names", [b"[]", b"{", b'{"KEY/a.so": 1}', b'{"KEY/a.so": "../inductor"}', b"\xff", None]
)
def test_a_list_of_files_that_is_wrong_is_an_error(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inductor", b"piece")
        if names is not None:
            archive.writestr("triton.json", names)
    with pytest.raises(ValueError, match="list of files is damaged"):
        unpack(buffer.getvalue())


def test_compressed_members_which_could_grow_without_end_are_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inductor", bytes(1 << 20))
        archive.writestr("triton.json", json.dumps({}))
    with pytest.raises(ValueError, match="compressed"):
        unpack(buffer.getvalue())
