"""A manifest comes back as it was, or is refused: no flipped byte, no odd value passes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.errors import StoreError
from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import Manifest, key_of, make_entry, make_ticket
from piecewise_core.store.manifest import LARGEST, check_artifact, parse, render


@st.composite
def boxes(draw):
    ends = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1 << 62)), max_size=3))
    return Box(tuple(Range(low, low + more) for low, more in ends))


TEXTS = st.text(max_size=20)
TICKETS = st.builds(make_ticket, st.dictionaries(TEXTS, TEXTS, max_size=4), boxes(), TEXTS)


@st.composite
def entries(draw):
    ticket = draw(TICKETS)
    return make_entry(
        ticket,
        draw(st.binary(max_size=40)),
        serves=draw(st.sampled_from([ticket.box, None])),
        why=draw(TEXTS),
        adaptor=draw(TEXTS),
        seconds=draw(st.floats(0, 1e6)),
        made=draw(st.integers(0, 1 << 40)),
        run=draw(TEXTS),
    )


@given(entries())
def test_a_manifest_is_read_as_it_was_written(entry):
    assert parse(render(entry.manifest)) == entry.manifest
    assert check_artifact(entry.manifest, entry.artifact) == entry


def test_every_flipped_bit_is_refused(make):
    data = render(make().manifest)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(StoreError):
                parse(bytes(flipped))


def test_every_truncation_and_every_addition_is_refused(make):
    data = render(make().manifest)
    for length in range(len(data)):
        with pytest.raises(StoreError):
            parse(data[:length])
    for more in (b"\n", b" ", b"\0", b"{}", data):
        with pytest.raises(StoreError):
            parse(data + more)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise_anything_else(data):
    with pytest.raises(StoreError):
        parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def signed(data: object) -> bytes:
    """``data`` in the place of a manifest, in the right form and with the right checksum."""

    def text(found: object) -> str:
        return json.dumps(found, sort_keys=True, indent=1)

    digest = hashlib.sha256(text(data).encode()).hexdigest()
    return (text({"manifest": data, "schema": 1, "sha256": digest}) + "\n").encode()


def plain(manifest: Manifest) -> dict[str, object]:
    found = json.loads(render(manifest))["manifest"]
    assert signed(found) == render(manifest)
    return found


@given(JSON)
def test_no_json_passes_for_a_manifest_by_its_checksum_alone(data):
    with pytest.raises(StoreError):
        parse(signed(data))


@given(entries(), st.data())
def test_a_field_of_another_kind_is_refused_whatever_the_checksum(entry, data):
    found = plain(entry.manifest)
    field = data.draw(st.sampled_from(sorted(found)))
    value = data.draw(JSON)
    try:
        parsed = parse(signed({**found, field: value}))
    except StoreError:
        return
    # What passes is a manifest through and through.
    assert parse(render(parsed)) == parsed
    assert parsed.key == key_of(parsed.factors)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "0" * 64},
        {"key": "../../etc"},
        {"factors": {"a": 1}},
        {"factors": {"a": "other"}},
        {"box": [[2, 1]]},
        {"box": [[-1, 1]]},
        {"box": [[0, True]]},
        {"box": [[0, 1 << 63]]},
        {"box": [[0]]},
        {"serves": []},
        {"serves": [[1, 65], [2, 2]]},
        {"serves": [[70, 80], [2, 2]]},
        {"size": -1},
        {"size": 1.0},
        {"size": True},
        {"size": 10**3000},
        {"sha256": "A" * 64},
        {"seconds": 1},
        {"seconds": -0.5},
        {"seconds": float("inf")},
        {"seconds": float("nan")},
        {"made": None},
        {"more": 1},
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused(make, change):
    found = plain(make().manifest)
    assert parse(signed(found)) == make().manifest
    with pytest.raises(StoreError):
        parse(signed({**found, **change}))


def test_a_missing_field_and_a_field_given_twice_are_refused(make):
    found = plain(make().manifest)
    for name in found:
        with pytest.raises(StoreError):
            parse(signed({k: v for k, v in found.items() if k != name}))
    text = render(make().manifest).decode()
    twice = text.replace('"adaptor": "acme",', '"adaptor": "evil",\n  "adaptor": "acme",')
    assert twice != text
    with pytest.raises(StoreError):
        parse(twice.encode())


def test_deep_nesting_huge_numbers_and_huge_files_are_refused_without_harm():
    for data in (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b" " * (LARGEST + 1)):
        with pytest.raises(StoreError):
            parse(data)


def test_another_schema_is_refused_by_its_number(make):
    text = render(make().manifest).replace(b'"schema": 1', b'"schema": 2')
    with pytest.raises(StoreError, match="schema is 2; this reads 1"):
        parse(text)


def test_an_artifact_of_another_size_or_content_is_refused(make):
    entry = make()
    for artifact in (b"", entry.artifact[:-1], entry.artifact + b"x", b"x" * len(entry.artifact)):
        with pytest.raises(StoreError, match="artifact"):
            check_artifact(entry.manifest, artifact)


def test_a_key_depends_on_every_factor_and_not_on_their_order(make):
    factors = {"a": "1", "b": "2"}
    assert key_of(factors) == key_of(dict(reversed(factors.items())))
    assert len({key_of(factors), key_of({"a": "1"}), key_of({"a": "2", "b": "1"})}) == 3
    assert replace(make().manifest, label="x").key == make().manifest.key
