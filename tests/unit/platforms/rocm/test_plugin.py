from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from piecewise_rocm import plugin
from piecewise_rocm.kfd import Driver, ask_driver

DRIVER = Driver(("gfx942",), True)
BUILD = {"version": "2.11.0+rocm7.0", "hip": "7.0.51831"}


def test_a_rocm_build_on_a_driver_with_a_gpu_is_available_with_its_facts():
    probe = plugin.judge(BUILD, DRIVER, {"HIP_VISIBLE_DEVICES": "0"})
    assert probe.available
    assert probe.reason == "1 x gfx942"
    assert probe.facts["HIP"] == "7.0.51831"


@pytest.mark.parametrize(
    ("build", "driver", "environ", "why"),
    [
        (None, DRIVER, {}, "not installed.*built without ROCm"),
        ({"version": "2.13.0", "cuda": "13.0"}, DRIVER, {}, "built without ROCm"),
        (BUILD, Driver((), True), {}, "finds no GPU"),
        (BUILD, Driver(("gfx942",), False), {}, "groups render and video"),
        (BUILD, DRIVER, {"HIP_VISIBLE_DEVICES": ""}, "HIP_VISIBLE_DEVICES hides"),
        (BUILD, DRIVER, {"ROCR_VISIBLE_DEVICES": "-1"}, "ROCR_VISIBLE_DEVICES hides"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(build, driver, environ, why):
    probe = plugin.judge(build, driver, environ)
    assert not probe.available
    assert re.search(why, probe.reason), probe.reason


def test_announcing_and_probing_import_no_torch_and_never_raise():
    script = (
        "import sys; from piecewise_rocm import plugin\n"
        "[info] = plugin.piecewise_platforms(); probe = info.probe()\n"
        "assert info.device_type == 'cuda' and probe.reason\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def topology(root, *versions):
    (root / "dev").mkdir()
    (root / "dev/kfd").touch()
    for number, version in enumerate(versions):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")


def test_the_topology_names_the_chips_and_leaves_the_processor_out(tmp_path):
    topology(tmp_path, 0, 90402, 90010, 100300, 120001)
    assert ask_driver(tmp_path) == Driver(("gfx942", "gfx90a", "gfx1030", "gfx1201"), True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
def test_a_node_that_this_user_may_not_open_is_unusable(tmp_path):
    topology(tmp_path, 90402)
    (tmp_path / "dev/kfd").chmod(0)
    assert not ask_driver(tmp_path).usable


def test_without_a_driver_the_probe_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "ask_driver", lambda: ask_driver(tmp_path))
    probe = plugin.probe()
    assert not probe.available
    assert "no AMD driver: there is no" in probe.reason
