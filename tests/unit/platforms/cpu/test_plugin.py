from __future__ import annotations

import subprocess
import sys

from piecewise_cpu import plugin


def test_the_probe_finds_a_cpu_and_its_facts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    probe = plugin.probe()
    assert probe.available
    assert int(probe.facts["cpus"]) >= 1
    assert probe.facts["OMP_NUM_THREADS"] == "3"
    assert probe.facts["machine"] in probe.reason


def test_the_plugin_announces_one_platform():
    (info,) = plugin.piecewise_platforms()
    assert (info.name, info.device_type, info.api_version) == ("cpu", "cpu", (1, 1))


def test_announcing_and_probing_import_no_torch():
    script = (
        "import sys; from piecewise_cpu import plugin\n"
        "[info] = plugin.piecewise_platforms(); info.probe()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
