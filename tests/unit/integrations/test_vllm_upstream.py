"""How vLLM's own tests are judged, without vLLM: names, ends, and reasons."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).parents[3] / "integrations" / "vllm"
REPORT = """<testsuites><testsuite>
<testcase classname="tests.compile.test_a" name="test_b[x-1]"/>
<testcase classname="tests.compile.test_a.TestC" name="test_d"><failure message="assert 1 == 2"/>
</testcase>
<testcase classname="tests.compile.test_a" name="test_e"><skipped message="needs CUDA"/></testcase>
<testcase classname="tests.compile.test_a" name="test_f"><error message="LocalEntryNotFoundError"/>
</testcase>
</testsuite></testsuites>"""


@pytest.fixture
def upstream(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return import_module("upstream")


def test_each_end_has_its_verdict_and_only_listed_reasons_excuse(upstream, tmp_path, capsys):
    (tmp_path / "report.xml").write_text(REPORT)
    ours = upstream.outcomes(tmp_path / "report.xml")
    assert list(ours)[:2] == ["compile/test_a.py::test_b[x-1]", "compile/test_a.py::TestC::test_d"]
    alone = {"compile/test_a.py::TestC::test_d": upstream.Outcome("passed")}
    assert upstream.show(ours, alone) == {"passed": 1, "failed": 1, "not applicable": 2}
    said = capsys.readouterr().out
    assert (
        "failed         compile/test_a.py::TestC::test_d  assert 1 == 2 [vLLM alone: passed]"
        in said
    )


def test_the_form_for_a_cpu_leaves_no_device_and_counts_no_captures(upstream):
    text = (
        'x = torch.randn(2).cuda()\ny = torch.ones(1, device="cuda")\n'
        "with expect(\n    num_graphs_seen=1,\n    num_cudagraph_captured=2 * (1 + n),  # two\n):\n"
    )
    for found, instead in upstream.CPU_FORM:
        text = re.sub(found, instead, text)
    assert text == (
        'x = torch.randn(2)\ny = torch.ones(1, device="cpu")\n'
        "with expect(\n    num_graphs_seen=1,\n):\n"
    )
