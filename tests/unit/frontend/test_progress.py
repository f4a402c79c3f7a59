"""How far a warm-up is: said where somebody can read it, at a bearable rate."""

from __future__ import annotations

import io
import sys

import pytest

from piecewise_core.frontend import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_every_few_seconds(clock, capsys):
    with progress.told(True) as tell:
        for step in range(10):
            clock[0] += 1
            tell(f"region 0 piece {step}", step, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warm-up: 2 of 10, region 0 piece 2, 3 s"
    assert len(lines) == 3


def test_what_is_over_at_once_says_nothing(capsys):
    with progress.told(True) as tell:
        tell("region 0 piece 0", 0, 1)
    assert capsys.readouterr().err == ""


def test_nothing_is_said_to_who_does_not_want_it(clock, monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.told(False) as tell:
            clock[0] += 100
            tell("region 0 piece 0", 0, 1)
        assert stream.getvalue() == ""


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with progress.told(True) as tell:
        tell("region 0 piece 0", 1, 4)
    assert "1/4" in stream.getvalue()


def test_an_error_inside_passes(monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(ValueError, match="inside"), progress.told(True):
            raise ValueError("inside")
