"""What ``piecewise new-platform`` writes works as it is."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from piecewise_core.cli.main import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STAND_IN = ("--device-module", "piecewise_core.testing.torch_simulated", "--device-type", "cpu")


def new_platform(*arguments, status=0):
    result = CliRunner().invoke(main, ["new-platform", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def files(project):
    return {str(p.relative_to(project)) for p in project.rglob("*") if p.is_file()}


# As generated ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory, plugin_builder):
    """An environment with two generated platforms, and where their projects are."""
    folder = tmp_path_factory.mktemp("scaffold")
    new_platform("acme", "--directory", folder)
    new_platform("acme-x2", *STAND_IN, "--directory", folder)
    projects = {name: folder / f"piecewise-{name}" for name in ("acme", "acme-x2")}
    return plugin_builder(folder / "venv", projects.values()), projects


@pytest.mark.parametrize(
    ("name", "level"),
    # What the second is made of reaches L2 in the tutorial's test as well.
    [("acme", "L1"), pytest.param("acme-x2", "L2", marks=pytest.mark.slow)],
)
def test_a_generated_platform_reaches_its_level_as_it_is(
    generated, fresh_processes, tmp_path, name, level
):
    environment, _ = generated
    report = tmp_path / "report.json"
    arguments = ("conformance", name, "--level", level, "--report", report)
    done = environment.forked(
        fresh_processes, "-m", "piecewise_core.cli.main", *arguments, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["level"]["reached"] == level


def test_the_generated_test_file_runs_the_kit_under_pytest(generated, fresh_processes):
    environment, projects = generated
    selected = ("-k", "keeps_the_protocols or probe", "-p", "no:cacheprovider")
    done = environment.forked(
        fresh_processes, "-m", "pytest", "-q", *selected, cwd=projects["acme-x2"]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["acme", "acme-x2"])
def test_all_of_the_generated_test_file_passes_but_what_the_xfail_file_lists(generated, name):
    environment, projects = generated
    printed = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=projects[name])
    assert " passed" in printed.splitlines()[-1]


def test_the_generated_platform_computes(generated, tmp_path):
    environment, _ = generated
    arguments = ("doctor", "--json", "--platform", "acme-x2")
    report = json.loads(environment.run("-m", "piecewise_core.cli.main", *arguments, cwd=tmp_path))
    assert report["healthy"]
    (active,) = [c for c in report["checkups"] if c["active"]]
    assert active["distribution"] == "piecewise-acme-x2 0.1.0"


# What is written ------------------------------------------------------------------


def test_the_package_has_all_that_a_vendor_needs(tmp_path):
    new_platform("acme", "--directory", tmp_path)
    assert files(tmp_path / "piecewise-acme") == {
        ".github/workflows/conformance.yml",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/piecewise_acme/__init__.py",
        "src/piecewise_acme/compiler.py",
        "src/piecewise_acme/platform.py",
        "src/piecewise_acme/plugin.py",
        "src/piecewise_acme/runtime.py",
        "tests/test_conformance.py",
        "tests/xfails.txt",
    }


def test_a_device_module_brings_a_driver_in_place_of_the_runtime(tmp_path):
    new_platform("npu", "--device-module", "torch_npu", "--directory", tmp_path)
    project = tmp_path / "piecewise-npu"
    assert "src/piecewise_npu/driver.py" in files(project)
    assert "src/piecewise_npu/runtime.py" not in files(project)
    driver = (project / "src/piecewise_npu/driver.py").read_text()
    assert 'MODULE = getattr(torch, "npu", torch_npu)' in driver
    plugin = (project / "src/piecewise_npu/plugin.py").read_text()
    assert 'PlatformInfo("npu", "npu", (1, 1), probe, create)' in plugin


STREAMS = "class Stream: ...\ndef current_stream(): ...\ndef stream(s): ...\n"
WAIT = "def synchronize(): ...\n"
GRAPHS = (
    "def graph_pool_handle(): ...\nclass {}Graph:\n    def capture_begin(self, pool=None): ...\n"
)


@pytest.mark.parametrize(
    ("source", "said", "there", "absent"),
    [
        (WAIT, "has no current_stream, Stream, stream", "torch_odd.synchronize()", "driver"),
        ("x = 1\n", "has no current_stream", "work is done when a call returns", "driver"),
        (STREAMS + WAIT, "has no graph_pool_handle, a class of", "TorchRuntime(M", "make_driver"),
        (STREAMS + WAIT + GRAPHS.format("ODD"), "", "TorchGraphDriver(\n", "graph_class"),
        (
            STREAMS + WAIT + GRAPHS.format("Board"),
            "",
            "graph_class=MODULE.BoardGraph,",
            "None  # a",
        ),
        (
            "import nothing_of_that_name\n",
            "could not be imported: Module",
            "TorchGraphD",
            "None  #",
        ),
        ("raise SystemExit(3)\n", "could not be imported: SystemExit: 3", "TorchGraphD", "None  #"),
    ],
)
def test_the_device_module_is_looked_at(tmp_path, monkeypatch, source, said, there, absent):
    (tmp_path / "torch_odd.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_odd", raising=False)
    told = new_platform("acme", "--device-module", "torch_odd", "--directory", tmp_path)
    monkeypatch.delitem(sys.modules, "torch_odd", raising=False)
    assert told.startswith(f"torch_odd {said}" if said else str(tmp_path)), told
    folder = tmp_path / "piecewise-acme" / "src" / "piecewise_acme"
    names = ("platform", "driver", "runtime")
    parts = [folder / f"{name}.py" for name in names if (folder / f"{name}.py").exists()]
    text = "".join(path.read_text() for path in parts)
    assert there in text
    assert absent not in text
    for path in parts:
        compile(path.read_text(), str(path), "exec")
    level = "L2" if "make_driver" in text else "L1"
    assert f"--level {level}" in (tmp_path / "piecewise-acme" / "README.md").read_text()


def test_the_test_file_is_an_import_and_a_class_of_one_line(tmp_path):
    new_platform("acme", "--directory", tmp_path)
    text = (tmp_path / "piecewise-acme/tests/test_conformance.py").read_text()
    assert len([line for line in text.splitlines() if line]) == 3


def test_names_with_hyphens_and_underscores_become_packages_and_classes(tmp_path):
    new_platform("acme-x2_b", "--directory", tmp_path)
    project = tmp_path / "piecewise-acme-x2-b"
    settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert settings["name"] == "piecewise-acme-x2-b"
    assert settings["entry-points"]["piecewise"] == {"acme-x2_b": "piecewise_acme_x2_b.plugin"}
    assert "AcmeX2BPlatform" in (project / "src/piecewise_acme_x2_b/platform.py").read_text()


@pytest.mark.parametrize(
    "options", [(), STAND_IN, ("--device-module", "torch_acme"), ("--device-module", "torch.xpu")]
)
def test_every_file_is_whole_and_no_line_is_long(tmp_path, options):
    new_platform("acme", *options, "--directory", tmp_path)
    project = tmp_path / "piecewise-acme"
    for name in files(project):
        text = (project / name).read_text()
        assert "{{" not in text
        assert "{%" not in text
        assert text.endswith("\n")
        assert "\n\n\n\n" not in text
        if name.endswith(".py"):
            ast.parse(text)
            assert max(map(len, text.splitlines())) <= 100
    tomllib.loads((project / "pyproject.toml").read_text())


def test_what_to_do_next_is_said(tmp_path):
    printed = new_platform("acme", "--directory", tmp_path)
    assert f"cd {tmp_path / 'piecewise-acme'}" in printed
    assert "pip install -e '.[test]'" in printed


def test_an_installed_device_module_is_a_dependency_and_its_version_a_fact(tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "acme_torch-2.14.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-torch\nVersion: 2.14\n")
    (info / "top_level.txt").write_text("torch_acme\n")
    (site / "torch_acme.py").write_text("")
    monkeypatch.syspath_prepend(site)
    for module, wanted in (
        ("torch_acme", "acme-torch"),
        ("torch_other.npu", "torch-other"),
        ("torch.xpu", None),
    ):
        folder = tmp_path / module
        new_platform("acme", "--device-module", module, "--directory", folder)
        project = folder / "piecewise-acme"
        needs = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
        assert needs[1:] == ([wanted] if wanted else [])
        plugin = (project / "src/piecewise_acme/plugin.py").read_text()
        assert (f'{{"{wanted}": version("{wanted}")}}' in plugin) == (wanted is not None)
        assert ("import version" in plugin) == (wanted is not None)


# Compilers ------------------------------------------------------------------------


def new_compiler(*arguments, status=0):
    result = CliRunner().invoke(main, ["new-compiler", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def test_a_generated_compiler_reaches_its_level_as_it_is(tmp_path, monkeypatch):
    printed = new_compiler("acme-one", "--directory", tmp_path)
    project = tmp_path / "piecewise-acme-one"
    assert f"cd {project}" in printed
    assert files(project) == {
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/piecewise_acme_one/__init__.py",
        "src/piecewise_acme_one/compiler.py",
        "src/piecewise_acme_one/plugin.py",
        "tests/test_conformance.py",
    }
    settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert settings["entry-points"]["piecewise"] == {"acme-one": "piecewise_acme_one.plugin"}
    for name in files(project):
        text = (project / name).read_text()
        assert "{{" not in text
        assert text.endswith("\n")
        if name.endswith(".py"):
            assert max(map(len, text.splitlines())) <= 100
    monkeypatch.syspath_prepend(project / "src")
    compiler = "piecewise_acme_one.compiler:AcmeOneCompiler"
    done = CliRunner().invoke(main, ["conformance", "--compiler", compiler])
    assert done.exit_code == 0, done.output
    assert "Met. level reached: L1" in done.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Acme", "is no name of a compiler"),
        ("inductor", "is a compiler of piecewise's own"),
        ("cpu", "would make a package of piecewise's own"),
    ],
)
def test_a_name_that_cannot_be_a_compiler_s_is_refused(tmp_path, name, said):
    printed = new_compiler(name, "--directory", tmp_path, status=2)
    assert said in " ".join(printed.split()).replace("│ ", "")
    assert list(tmp_path.iterdir()) == []


# Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Acme", "'Acme' is no name of a platform: use lower-case letters"),
        ("acme one", "is no name of a platform"),
        ("2acme", "is no name of a platform"),
        ("acme-", "is no name of a platform"),
        ("acme--x", "is no name of a platform"),
        ("../acme", "is no name of a platform"),
        ("import", "is no name of a platform"),
        ("cpu", "'cpu' is a platform of piecewise's own; choose another"),
        ("cuda", "is a platform of piecewise's own"),
        ("rocm", "is a platform of piecewise's own"),
        ("core", "would make piecewise-core"),
    ],
)
def test_a_name_that_cannot_be_a_platform_s_is_refused(tmp_path, name, said):
    printed = new_platform(name, "--directory", tmp_path, status=2)
    assert said in " ".join(printed.split()).replace("│ ", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device-module", "torch acme"), "is no module's name"),
        (("--device-module", "torch..acme"), "is no module's name"),
        (("--device-module", "torch.class"), "is no module's name"),
        (("--device-type", "CPU:0"), "is no device type of torch's"),
        (("--device-module", "MyDevice"), "is no device type of torch's"),
    ],
)
def test_a_module_or_device_type_that_cannot_be_one_is_refused(tmp_path, options, said):
    assert said in new_platform("acme", *options, "--directory", tmp_path, status=2)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_left_as_it_is(tmp_path):
    project = tmp_path / "piecewise-acme"
    project.mkdir()
    printed = new_platform("acme", "--directory", tmp_path, status=1)
    assert f"{project} exists already; remove it, or choose another --directory" in printed
    assert list(project.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    printed = new_platform("acme", "--directory", tmp_path / "file" / "below", status=1)
    assert "cannot write" in printed
    assert "choose another --directory" in printed


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    printed = new_platform("acme", "--directory", tmp_path, status=1)
    assert "No space left on device" in printed
    assert list(tmp_path.iterdir()) == []
