"""Statements in lanes: what a plan lets go of, and when."""

from __future__ import annotations

from piecewise_core.runtime.forking import Forking
from piecewise_core.runtime.planlines import Line, freeing


def line(text):
    names = {word.strip("(),") for word in text.replace("=", " ").split() if "v_" in word}
    return Line(text, frozenset(names))


def source(*pieces):
    """Of ``(lane, statement, ...)`` each."""
    forking = Forking()
    for lane, *texts in pieces:
        forking.add([line(text) for text in texts], lane)
    return freeing([*forking.joined(), Line("return")])


def test_what_crosses_over_is_held_until_the_join_and_what_does_not_goes_at_once():
    assert source(
        (None, "v_x = _piece0"),
        ((0, 0), "v_a = v_x", "v_b = v_a"),
        ((0, 1), "v_c = v_x", "v_d = v_c"),
        (None, "v_e = v_b v_d"),
    ) == [
        "v_x = _piece0",
        "_fork()",
        "v_a = v_x",
        "v_b = v_a",
        "del v_a",
        "with _side():",
        " v_c = v_x",
        " v_d = v_c",
        " del v_c",
        "_join()",
        "del v_x",
        "v_e = v_b v_d",
        "del v_b, v_d, v_e",
        "return",
    ]


def test_what_the_first_lane_uses_up_is_held_too():
    """The second lane would be given its memory where it made it itself, in a fork before."""
    found = source(
        ((0, 0), "v_a = _piece0"),
        ((0, 1), "v_b = _piece1"),
        ((1, 0), "v_c = v_b"),
        ((1, 1), "v_d = v_a"),
    )
    assert found.count("_fork()") == found.count("_join()") == 2
    assert found[found.index("_join()", 5) + 1] == "del v_a, v_b"


def test_without_lanes_nothing_is_added():
    assert source((None, "v_a = _piece0"), (None, "v_b = v_a")) == [
        "v_a = _piece0",
        "v_b = v_a",
        "del v_a, v_b",
        "return",
    ]
