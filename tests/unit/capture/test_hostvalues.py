"""A device that keeps lengths in its graphs is told each call's own before it replays."""

from __future__ import annotations

import contextvars
import runpy
import threading
from pathlib import Path

import pytest

from piecewise_core.building_blocks import host_values
from piecewise_core.capture.hostvalues import current_host_values

EXAMPLE = Path(__file__).parents[3] / "examples" / "vendors" / "host_lengths.py"


def test_captured_attention_follows_the_lengths_that_each_call_brings(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == "4 replays of 1 graph"


def test_values_nest_add_up_and_end_with_their_block():
    with host_values(lengths=[1], slot=7):
        with host_values(lengths=[2]):
            assert dict(current_host_values()) == {"lengths": [2], "slot": 7}
        assert current_host_values()["lengths"] == [1]
        with pytest.raises(KeyError), host_values(slot=8):
            raise KeyError
        assert current_host_values()["slot"] == 7
        with pytest.raises(TypeError):
            current_host_values()["slot"] = 9
    assert not current_host_values()


def test_another_thread_has_values_of_its_own():
    seen = []
    with host_values(lengths=[1]):
        thread = threading.Thread(target=lambda: seen.append(dict(current_host_values())))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
    assert seen == [{}]
    assert copied.run(lambda: dict(current_host_values())) == {"lengths": [1]}
