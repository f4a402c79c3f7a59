"""``piecewise bisect``: from a function to the piece that is wrong."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from piecewise_core.cli.main import main

MODULE = """
import torch
import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

def model(x):
    return torch.softmax(x.sin(), -1) * 2

def made(**platform):
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("n", 1, 8)}}, splitting_ops=("torch.softmax",), capture_sizes=(4,),
        compiler="eager", cache_dir=None,
    )
    return pw.compile(model, config, platform=SimulatedPlatform(**platform))

def right():
    return made(), (torch.randn(4, 3),)

def wrong():
    return made(drop_op="aten.sin.default"), (), {"x": torch.randn(4, 3)}

def outside():
    return made(), (torch.randn(9, 3),)

def nothing():
    return 3

def odd():
    return made(), 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    name = f"checks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())

    def call(function, *options):
        arguments = ["bisect", f"{name}:{function}", "--path", str(tmp_path), *options]
        return CliRunner().invoke(main, arguments)

    return call


def test_a_call_that_is_right_exits_with_0(run):
    done = run("right")
    assert done.exit_code == 0, done.output
    assert "nothing differs" in done.output


def test_a_call_that_is_wrong_exits_with_1_and_names_the_piece(run):
    done = run("wrong", "--json")
    report = json.loads(done.output)
    assert done.exit_code == 1
    assert (report["stage"], report["piece"]) == ("captured", "region 0 piece 0")
    assert any("x.sin()" in line for line in report["source"])
    assert "first difference: region 0 piece 0, stage captured" in run("wrong").output


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("outside", "OutOfRange"),
        ("nothing", r"returned a int; it must return \(compiled, args\)"),
        ("odd", "give a tuple and a dict"),
        ("missing", "has no 'missing'"),
    ],
)
def test_what_cannot_be_called_exits_with_2_and_says_why(run, function, message):
    done = run(function)
    assert done.exit_code == 2
    assert __import__("re").search(message, done.output)


def test_a_subject_without_a_function_or_a_module_is_told_how_to_write_one():
    for subject, message in (("checks", "MODULE:FUNCTION"), ("nowhere_to_be:f", "--path")):
        done = CliRunner().invoke(main, ["bisect", subject])
        assert (done.exit_code, message in done.output) == (2, True)
