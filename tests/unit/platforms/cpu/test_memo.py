from __future__ import annotations

import pytest
from filelock import FileLock

from piecewise_cpu.memo import Memo


def test_a_success_is_known_once_recorded_and_only_for_its_factors(tmp_path):
    memo = Memo(tmp_path, {"compiler": "g++", "version": "12"})
    assert not memo.known()
    memo.record()
    assert memo.known()
    assert Memo(tmp_path, {"version": "12", "compiler": "g++"}).known()
    assert not Memo(tmp_path, {"compiler": "g++", "version": "13"}).known()


def test_a_record_is_written_whole_and_leaves_nothing_else(tmp_path):
    Memo(tmp_path, {"a": "1"}).record()
    (record,) = tmp_path.iterdir()
    assert record.suffix == ".json"


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"{}"])
def test_a_damaged_record_is_no_record(tmp_path, damage):
    memo = Memo(tmp_path, {"a": "1"})
    memo.record()
    (record,) = tmp_path.iterdir()
    record.write_bytes(damage)
    assert not memo.known()


def test_a_directory_that_cannot_be_made_only_means_nothing_is_remembered(tmp_path):
    (tmp_path / "file").write_text("")
    memo = Memo(tmp_path / "file" / "below", {"a": "1"})
    with memo.single_flight(1):
        memo.record()
    assert not memo.known()


def test_a_lock_that_stays_taken_is_waited_for_so_long_and_no_longer(tmp_path):
    memo = Memo(tmp_path, {"a": "1"})
    with memo.single_flight(1):
        (lock,) = tmp_path.glob("*.lock")
        with pytest.raises(KeyError), memo.single_flight(0.01):
            raise KeyError  # the body runs, though the lock is taken
    with FileLock(str(lock), timeout=0):
        pass  # and it was given back
