"""Who gets outputs as they are, who gets copies, and who is not served by graphs."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from piecewise_core.capture.output_ownership import OutputOwnership


def elsewhere(fn, thread=None):
    """``fn()`` in a thread of its own that is gone afterwards."""
    found = []
    thread = threading.Thread(target=lambda: found.append(fn()), name="other")
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_asks_once_and_gets_outputs_as_they_are():
    callers = OutputOwnership(cloning=False)
    assert callers.owner == 0
    assert callers.admit()
    assert callers.owner == threading.get_ident()
    assert not callers.cloning


def test_a_second_thread_waits_for_the_first_to_call_again_and_then_both_get_copies(caplog):
    callers = OutputOwnership(cloning=False)
    callers.admit()
    with caplog.at_level(logging.WARNING):
        assert not elsewhere(callers.admit)
        assert not elsewhere(callers.admit)
    (record,) = caplog.records
    assert "clone_outputs=True" in record.getMessage()
    assert threading.current_thread().name in record.getMessage()
    assert callers.owner == 0  # so that the first thread asks too
    assert callers.admit()
    assert callers.cloning
    assert elsewhere(callers.admit)


def test_a_thread_that_is_gone_reads_nothing():
    callers = OutputOwnership(cloning=False)
    assert elsewhere(callers.admit)
    assert elsewhere(callers.admit)
    assert callers.admit()
    assert not callers.cloning


def test_where_outputs_are_copied_any_thread_may_replay():
    callers = OutputOwnership(cloning=True)
    assert callers.admit()
    assert elsewhere(callers.admit)


def test_an_output_that_is_kept_beyond_the_call_after_is_told_once(caplog):
    callers, outputs = OutputOwnership(cloning=False, strict=True), [torch.ones(2), None]
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            out = callers.handed(outputs)  # held until the next one is there, as in any loop
        assert caplog.records == []
        assert out[0].data_ptr() == outputs[0].data_ptr()
        for _ in range(2):
            callers.handed(outputs)
    (record,) = caplog.records
    assert "clone_outputs=True" in record.getMessage()
    assert not callers.strict


@pytest.mark.parametrize("cloning", [True, False])
def test_copies_are_the_callers_to_keep(cloning):
    assert OutputOwnership(cloning=cloning, strict=True).strict is not cloning
