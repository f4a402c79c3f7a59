"""A miss names the nearest entry and each factor that differs."""

from __future__ import annotations

import pytest

from piecewise_core.store.misses import Difference, differences, nearest

BASE = {"piece.form": "f", "piece.graph": "g", "box": "[1, 8]", "flag": "on", "torch": "2.11"}


def manifest(make, label="region 0 piece 0", made=0, **changes):
    return make(factors={**BASE, **changes}, label=label, made=made).manifest


def test_one_changed_factor_is_named_with_old_and_new_value(make):
    found = nearest({**BASE, "flag": "off"}, "", [manifest(make), manifest(make, torch="2.9")])
    assert found.differences == (Difference("flag", "on", "off"),)
    assert str(found) == "flag was on, is off"


def test_the_same_piece_comes_first_however_much_else_changed(make):
    sibling = manifest(make, **{"piece.form": "other", "piece.graph": "other"})
    old = manifest(make, flag="x", torch="y", box="[1, 9]")
    assert nearest(BASE, "", [sibling, old]).nearest == old
    assert nearest(BASE, "", [sibling]).nearest == sibling


def test_among_equals_the_same_label_decides_and_then_the_youngest(make):
    one = manifest(make, "region 0 piece 0", 5, **{"piece.form": "1", "piece.graph": "1"})
    two = manifest(make, "region 0 piece 2", 9, **{"piece.form": "2", "piece.graph": "2"})
    three = manifest(make, "region 0 piece 2", 7, **{"piece.form": "3", "piece.graph": "3"})
    assert nearest(BASE, "region 0 piece 0", [one, two, three]).nearest == one
    assert nearest(BASE, "region 0 piece 2", [one, three, two]).nearest == two


def test_a_piece_s_digest_is_named_only_where_nothing_else_tells_of_it():
    assert differences({"piece.form": "a"}, {"piece.form": "b"}) == (
        Difference("piece.form", "a", "b"),
    )
    old, new = {"piece.form": "a", "piece.tensors": "x"}, {"piece.form": "b", "piece.tensors": "y"}
    assert [d.factor for d in differences(old, new)] == ["piece.tensors"]


def test_a_factor_that_came_or_went_is_named():
    found = differences({"a": "1"}, {"b": ""})
    assert [str(d) for d in found] == ["a was 1, is not there", "b was not there, is empty"]


def test_of_long_lists_only_what_differs_is_shown():
    words = " ".join(f"flag{n}" for n in range(40))
    found = str(Difference("machine.flags", f"{words} avx2", f"{words} avx512f"))
    assert found == "machine.flags was avx2, is avx512f"


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_sentence_names_three_and_counts_the_rest(make, count):
    changes = {f"f{n}": "x" for n in range(count)}
    text = str(nearest({**BASE, **changes}, "", [manifest(make)]))
    assert text.count(" was ") == min(3, count)
    assert text.endswith(f"and {count - 3} more") == (count > 3)


def test_an_empty_store_has_nothing_to_compare_with():
    assert str(nearest(BASE, "", [])) == "the store had nothing to compare with"


def test_only_entries_of_the_same_model_tell_why(make):
    own = manifest(make, flag="off", other="1", label="Ranker: region 0 piece 0")
    nearer = manifest(make, flag="off", label="Encoder: region 0 piece 0")
    unknown = manifest(make, flag="off", other="2", more="3", label="region 0 piece 0")
    label = "Ranker: region 0 piece 0"
    assert nearest(BASE, label, [own, nearer, unknown]).nearest == own
    assert nearest(BASE, label, [nearer]).nearest is None
    assert nearest(BASE, label, [nearer, unknown]).nearest == unknown  # of before models had names
    assert (own.model, own.piece) == ("Ranker", "region 0 piece 0")
    assert (unknown.model, unknown.piece) == ("", "region 0 piece 0")


def test_traces_of_other_models_tell_nothing(make):
    own, other = (manifest(make, **{"trace.of": of}) for of in ("app:Ranker", "app:Encoder"))
    wanted = {**BASE, "trace.of": "app:Ranker", "torch": "2.9"}
    assert nearest(wanted, "", [other, own]).nearest == own
    assert nearest(wanted, "", [other]).nearest is None
