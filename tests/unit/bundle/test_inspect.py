"""``piecewise bundle inspect``: for people and for programs; damage is an exit code."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import piecewise_core as pw
from piecewise_core.cli.main import main


def double(x):
    return torch.softmax(x * 2, -1)


@pytest.fixture
def file(tmp_path):
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 9)}}, compiler="eager")
    fast = pw.compile(double, config, "cpu")
    with torch.inference_mode():
        fast(torch.ones(2, 3))
    fast.save(tmp_path / "x.pwb")
    return tmp_path / "x.pwb"


def test_it_says_what_a_bundle_holds(file):
    done = CliRunner().invoke(main, ["bundle", "inspect", str(file)])
    assert done.exit_code == 0, done.output
    assert "test_inspect:double on cpu, platform cpu" in done.output
    assert "region 0: sizes [1, 9]" in done.output
    assert "left out: region 0 piece 0" in done.output
    assert "machine." in done.output


def test_it_says_so_in_json_too(file):
    done = CliRunner().invoke(main, ["bundle", "inspect", str(file), "--json"])
    facts = json.loads(done.output)
    assert facts["config"]["dynamic"] == {"x": {"0": {"max": 9, "min": 1, "name": "rows"}}}
    assert facts["regions"][0]["sizes"] == [[1, 9]]
    assert facts["factors"]["torch"].startswith(torch.__version__)
    assert facts["pieces"] == []


def test_a_damaged_file_is_told_and_exits_with_1(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    done = CliRunner().invoke(main, ["bundle", "inspect", str(file)])
    assert done.exit_code == 1
    assert "damaged" in done.output
