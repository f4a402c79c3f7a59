"""``piecewise compile`` and ``piecewise bench``: from a function that makes a model."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser

import pytest
import torch
from click.testing import CliRunner

import piecewise_core as pw
from piecewise_core.cli.benchcalls import Calls
from piecewise_core.cli.benchreport import page, table
from piecewise_core.cli.benchruns import Measured, Runner, measure
from piecewise_core.cli.main import main

MODULE = """
import torch
import piecewise_core as pw

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x, scale=None):
        y = torch.softmax(self.up(x), -1)
        return self.down(y) if scale is None else self.down(y) * scale

def example():
    return Model().eval(), (torch.randn(4, 8),)

def named():
    return Model().eval(), (), {"x": torch.randn(4, 8), "scale": torch.randn(8)}

def made():
    return Model().eval(), lambda rows: (torch.randn(rows, 8),)

def calls_with_names():
    return Model().eval(), lambda rows: ((torch.randn(rows, 8),), {"scale": torch.ones(8)})

def compiled():
    return pw.compile(Model().eval(), pw.Config(compiler="eager")), (torch.randn(4, 8),)

class Draws(Model):
    def forward(self, x):
        return super().forward(x) + torch.rand(8)

def draws():
    return Draws().eval(), (torch.randn(4, 8),)

def alone():
    return Model().eval()

def nothing():
    return 3

def odd():
    return Model().eval(), 3

def raising():
    raise RuntimeError("no weights at /nowhere")

def make_raises():
    return Model().eval(), lambda rows: 1 / 0

number = 3
"""

CONFIG = """
splitting_ops = ["torch.softmax"]
capture_sizes = [4]
capture_max = false
compiler = "eager"

[dynamic.x]
0 = { name = "rows", max = 64 }
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    name = f"served_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "config.toml").write_text(CONFIG)
    monkeypatch.setattr("sys.path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "cache"))

    def call(command, function, *options):
        subject = function if ":" in function or not function else f"{name}:{function}"
        arguments = [command, subject, "--path", str(tmp_path), *options]
        return CliRunner().invoke(main, arguments)

    yield call
    sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["example", "named"])
def test_compile_writes_a_bundle_that_binds_to_the_model(run, tmp_path, function):
    file = tmp_path / "model.pwb"
    done = run("compile", function, "--config", "config.toml", "-o", str(file))
    assert done.exit_code == 0, done.output
    assert "warm-up: 1 region" in done.output
    assert f"bundle {file}" in done.output
    module = next(m for n, m in sys.modules.items() if n.startswith("served_"))
    model, args, *kwargs = getattr(module, function)()
    with torch.inference_mode():
        fast = pw.load(file, model)
        args, kwargs = args, kwargs[0] if kwargs else {}
        torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs))
    assert fast.stats().graphs == 0


def test_compile_takes_a_model_that_is_compiled_already_and_prints_json(run, tmp_path):
    done = run("compile", "compiled", "-o", str(tmp_path / "m.pwb"), "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["bundle"]["bytes"] == (tmp_path / "m.pwb").stat().st_size
    assert facts["warmup"]["regions"] == 1


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("example", ["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        ("compiled", ["--config", "config.toml"], "is compiled already"),
        ("alone", ["--config", "config.toml"], "pass example arguments"),
        ("nothing", [], "returned a int"),
        ("odd", [], "give a tuple and a dict"),
        ("raising", [], "raised RuntimeError: no weights at /nowhere"),
        ("number", [], "is a int; name a function"),
        ("absent", [], "has no 'absent'"),
        ("nomodule", [], "has no 'nomodule'"),
        ("", [], "is not MODULE:FUNCTION"),
        ("nowhere_at_all:f", [], "no module named 'nowhere_at_all'"),
        ("broken:f", [], "no module named 'nothing_of_that_name'"),
        ("raises:f", [], "raises cannot be imported: ZeroDivisionError"),
        ("example", ["--platform", "abacus"], "abacus"),
    ],
)
def test_compile_says_in_one_line_what_cannot_be_done(run, function, options, said):
    done = run("compile", function, "-o", "m.pwb", *options)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_compile_says_before_it_works_that_the_bundle_cannot_be_written(run):
    done = run("compile", "raising", "-o", "nowhere/m.pwb")
    assert done.exit_code == 2
    assert "there is no directory nowhere" in done.output


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_bench_compares_and_times_each_size_of_a_file_and_writes_a_page(run, tmp_path):
    (tmp_path / "sizes.csv").write_text("rows,count\n4,90\n9,9\n70,1\n")
    options = ["--config", "config.toml", "--traffic", "sizes.csv", "--html", "page.html"]
    done = run("bench", "example", *options, "--no-torch-compile", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert [(time["sizes"], time["calls"]) for time in facts["times"]] == [([4], 90), ([9], 9)]
    assert all(set(time["seconds"]) == {"eager", "piecewise"} for time in facts["times"])
    expected = sum(time["calls"] * time["seconds"]["eager"] for time in facts["times"])
    assert facts["total"]["eager"] == pytest.approx(expected)
    assert facts["notes"] == ["2 sizes are 99.0% of the calls; others are left out"]
    shown = Cells((tmp_path / "page.html").read_text())
    assert shown.tags.count("tr") == 4
    assert "script" not in shown.tags
    assert "example" in shown.text


@pytest.mark.parametrize("function", ["named", "made", "calls_with_names"])
def test_bench_takes_calls_by_name_or_from_a_function(run, function):
    done = run("bench", function, "--config", "config.toml", "--sizes", "3", "--no-torch-compile")
    assert done.exit_code == 0, done.output
    assert "results equal to eager" in done.output
    assert done.output.splitlines()[-1].split()[0] == "all"
    assert max(map(len, done.output.splitlines())) <= 80 + len("served_") + 60


@pytest.mark.inductor
def test_bench_times_torch_compile_too(run, monkeypatch):
    monkeypatch.setattr("piecewise_core.cli.benchruns._SPENT", 0)
    done = run("bench", "example", "--config", "config.toml", "--sizes", "4")
    assert done.exit_code == 0, done.output
    assert "torch.compile speed" in done.output


def test_bench_leaves_out_what_gives_other_results_or_raises():
    def raising(x):
        raise ValueError("no such size\nand more")

    calls = Calls((torch.sin, (torch.ones(2),)), "m:f", pw.Config())
    runners = [
        Runner("eager", torch.sin),
        Runner("wrong", lambda x: torch.sin(x) + 1e-2),
        Runner("raising", raising),
        Runner("right", torch.sin),
    ]
    said = []
    times, failed = measure(runners, calls, {(): 3}, said.append)
    assert set(times[0].seconds) == {"eager", "right"}
    assert failed["wrong"].startswith("the one size: other results than eager: output: ")
    assert failed["raising"] == "the one size: ValueError: no such size"
    assert said[0] == "comparing eager at the one size"
    found = Measured("<b>", (), "cpu", times, failed)
    assert "wrong is left out: the one size" in table(found)
    assert "<b>" in Cells(page(found)).text


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("draws", [], "gives different results for the same call"),
        ("nothing", [], "returned a int"),
        ("example", ["--sizes", "four"], "write 1,7,32"),
        ("example", ["--sizes", "99"], "no size of the calls is in the bounds"),
        ("example", ["--sizes", "4", "--traffic", "x.csv"], "give one of them"),
        ("example", ["--traffic", "x.csv"], "x.csv cannot be read"),
        ("example", ["--html", "nowhere/x.html"], "there is no directory nowhere"),
        ("make_raises", ["--sizes", "4"], "make(4) raised ZeroDivisionError"),
        ("make_raises", [], "--sizes"),
    ],
)
def test_bench_says_in_one_line_what_cannot_be_measured(run, function, options, said):
    arguments = ["--config", "config.toml", "--no-torch-compile", *options]
    done = run("bench", function, *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_every_command_has_a_help_page_that_fits(run):
    for command in ("compile", "bench"):
        done = CliRunner().invoke(main, [command, "--help"])
        assert done.exit_code == 0
        assert "--config FILE" in done.output
        assert max(map(len, done.output.splitlines())) <= 80
