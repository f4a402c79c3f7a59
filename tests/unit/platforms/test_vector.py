"""The vector probes are answered once per machine, and never wrongly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from piecewise_cpu.vector import probe_vector_isas

FACTORS = {"compiler": "g++", "version": "12"}


class Inductor:
    """Answers as told and notes what it was asked."""

    def __init__(self, found: int, supported: int) -> None:
        self.answer = (found, supported)
        self.known: list[bool] = []

    def __call__(self, builds: str, known: bool) -> tuple[int, int]:
        assert Path(builds).is_dir()
        self.known.append(known)
        return self.answer


def test_the_second_process_is_told_that_the_builds_succeeded(tmp_path: Path) -> None:
    inductor = Inductor(3, 3)
    first = probe_vector_isas(tmp_path, FACTORS, inductor)
    second = probe_vector_isas(tmp_path, FACTORS, inductor)
    assert first == second == {"cpp.vec_isa_ok": True}
    assert inductor.known == [False, True]


def test_another_compiler_is_probed_again(tmp_path: Path) -> None:
    inductor = Inductor(3, 3)
    probe_vector_isas(tmp_path, FACTORS, inductor)
    probe_vector_isas(tmp_path, {**FACTORS, "version": "13"}, inductor)
    assert inductor.known == [False, False]


@pytest.mark.parametrize("found", [0, 2])
def test_a_set_that_fails_is_never_forced(tmp_path: Path, found: int) -> None:
    inductor = Inductor(found, 3)
    assert probe_vector_isas(tmp_path, FACTORS, inductor) == {}
    assert probe_vector_isas(tmp_path, FACTORS, inductor) == {}
    assert inductor.known == [False, False]


def test_a_directory_that_cannot_be_made_leaves_the_probing_to_inductor(tmp_path: Path) -> None:
    (tmp_path / "probes").write_text("a file in the way")
    inductor = Inductor(3, 3)
    assert probe_vector_isas(tmp_path, FACTORS, inductor) == {}
    assert inductor.known == []


def test_the_directory_is_for_the_user_alone(tmp_path: Path) -> None:
    probe_vector_isas(tmp_path / "new", FACTORS, Inductor(3, 3))
    assert os.stat(tmp_path / "new").st_mode & 0o077 == 0
