"""The vector probes are answered once per machine, and never wrongly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fresh_process import FreshProcesses

from piecewise_cpu.vector import probe_vector_isas

FACTORS = {"compiler": "g++", "version": "12"}


class Inductor:
    """Answers as told and notes what it was asked."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.known: list[bool] = []

    def __call__(self, builds: str, known: bool) -> bool:
        assert Path(builds).is_dir()
        self.known.append(known)
        return self.works


def test_the_second_process_is_told_that_the_builds_succeeded(tmp_path: Path) -> None:
    inductor = Inductor()
    first = probe_vector_isas(tmp_path, FACTORS, inductor)
    second = probe_vector_isas(tmp_path, FACTORS, inductor)
    assert first == second == {"cpp.vec_isa_ok": True}
    assert inductor.known == [False, True]


def test_another_compiler_is_probed_again(tmp_path: Path) -> None:
    inductor = Inductor()
    probe_vector_isas(tmp_path, FACTORS, inductor)
    probe_vector_isas(tmp_path, {**FACTORS, "version": "13"}, inductor)
    assert inductor.known == [False, False]


def test_another_choice_of_the_user_s_is_probed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inductor = Inductor()
    probe_vector_isas(tmp_path, FACTORS, inductor)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    probe_vector_isas(tmp_path, FACTORS, inductor)
    assert inductor.known == [False, False]


def test_a_set_that_fails_is_never_forced(tmp_path: Path) -> None:
    inductor = Inductor(works=False)
    assert probe_vector_isas(tmp_path, FACTORS, inductor) == {}
    assert probe_vector_isas(tmp_path, FACTORS, inductor) == {}
    assert inductor.known == [False, False]


CHOOSES = """
import sys
from torch._inductor import config, cpu_vec_isa
chosen = cpu_vec_isa.pick_vec_isa()
cpu_vec_isa.valid_vec_isa_list.cache_clear()
from pathlib import Path
from piecewise_cpu.vector import probe_vector_isas
settings = probe_vector_isas(Path(sys.argv[1]), {})
with config.patch(settings):
    assert cpu_vec_isa.pick_vec_isa() == chosen, (cpu_vec_isa.pick_vec_isa(), chosen)
assert settings == ({"cpp.vec_isa_ok": True} if chosen else {}), (settings, chosen)
"""


@pytest.mark.inductor
@pytest.mark.parametrize("capability", ["", "avx2"])
def test_inductor_chooses_what_it_would_have_chosen(
    tmp_path: Path, capability: str, fresh_processes: FreshProcesses
) -> None:
    chosen = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    done = fresh_processes.run(CHOOSES, str(tmp_path), env={**os.environ, **chosen})
    assert done.returncode == 0, done.stderr


def test_a_directory_that_cannot_be_made_leaves_the_probing_to_inductor(tmp_path: Path) -> None:
    (tmp_path / "probes").write_text("a file in the way")
    inductor = Inductor()
    assert probe_vector_isas(tmp_path, FACTORS, inductor) == {}
    assert inductor.known == []


def test_the_directory_is_for_the_user_alone(tmp_path: Path) -> None:
    probe_vector_isas(tmp_path / "new", FACTORS, Inductor())
    assert os.stat(tmp_path / "new").st_mode & 0o077 == 0
