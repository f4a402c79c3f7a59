"""Triton kernels run as they were measured where their code was made; by stand-ins for kernels."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from piecewise_core.compile import tuned
from piecewise_core.compile.inductor import InductorCompiler
from piecewise_core.torch_compat import inductor

WIDE, NARROW, DEEP = (({"XBLOCK": 256}, 4, 1), ({"XBLOCK": 64}, 4, 1), ({"XBLOCK": 64}, 4, 3))


def kernel(*configs, source="/saved/ab/cabc.py"):
    """As loaded, before its first launch."""
    made = CachingAutotuner.__new__(CachingAutotuner)
    made.filename = source
    names = ("kwargs", "num_warps", "num_stages")
    launchers = [dict(zip(names, config, strict=True)) for config in configs]
    made.launchers = [SimpleNamespace(config=SimpleNamespace(**each)) for each in launchers]
    return made


def runs_in(made):
    configs = [launcher.config for launcher in made.launchers]
    return [(c.kwargs, c.num_warps, c.num_stages) for c in configs]


def chosen_in_another_process(*configs):
    """What a file says after this one kernel was measured there."""
    return tuned.unpack(tuned.pack(b"", [kernel(*configs)]))[0]


def test_what_was_measured_is_chosen_wherever_the_source_lies():
    data = tuned.pack(b"\x00artifact\n{}\n", [kernel(NARROW), kernel(WIDE, DEEP, source="/c.py")])
    chosen, artifact = tuned.unpack(data)
    assert artifact == b"\x00artifact\n{}\n"
    loaded = [kernel(WIDE, NARROW, DEEP, source="/here/cabc.py"), kernel(WIDE, DEEP, source="c.py")]
    tuned.choose(loaded, chosen)
    assert [runs_in(each) for each in loaded] == [[NARROW], [WIDE, DEEP]]


@pytest.mark.parametrize("found", [(WIDE, DEEP), (WIDE, NARROW, NARROW), (WIDE,), ()])
def test_a_kernel_without_that_one_configuration_is_measured(found):
    loaded = kernel(*found)
    tuned.choose([loaded], chosen_in_another_process(NARROW))
    assert runs_in(loaded) == list(found)


def test_a_torch_that_says_nothing_of_configurations_measures():
    loaded = kernel(WIDE, NARROW)
    del loaded.launchers[0].config
    tuned.choose([loaded], chosen_in_another_process(NARROW))
    assert len(loaded.launchers) == 2


@pytest.mark.parametrize("damaged", [b"artifact", b"[1]\nartifact", b"{\nartifact"])
def test_what_nobody_packed_is_an_error(damaged):
    with pytest.raises((TypeError, ValueError)):
        tuned.unpack(damaged)


def test_a_loaded_piece_hands_on_what_it_came_with_and_what_was_measured_since(monkeypatch):
    there = [kernel(WIDE, NARROW, source="a.py"), kernel(WIDE, NARROW, source="b.py")]
    older, newer = ModuleType("older"), ModuleType("newer")
    older.kernel, (newer.first, newer.second) = kernel(DEEP, source="o.py"), there
    monkeypatch.setattr(PyCodeCache, "modules", [older])

    class Artifact:
        @staticmethod
        def load(path, format):
            PyCodeCache.modules.append(newer)
            return torch.relu

    monkeypatch.setattr(inductor, "artifact_class", lambda: Artifact)
    given = tuned.pack(b"artifact", [kernel(NARROW, source="a.py")])
    made = InductorCompiler().load(given)
    assert [runs_in(each) for each in there] == [[NARROW], [WIDE, NARROW]]
    assert made.handle() == given
    there[1].launchers = there[1].launchers[:1]  # it was launched
    chosen, artifact = tuned.unpack(made.handle())
    assert sorted(chosen) == ["a.py", "b.py"]
    assert artifact == b"artifact"
