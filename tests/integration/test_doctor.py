from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import invalidate_caches
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from piecewise_core.cli.main import main
from piecewise_core.cli.settings import settings
from piecewise_core.plugins import registered
from piecewise_core.protocols import Capabilities, CompiledGraph, PlatformInfo, Probe

pytestmark = pytest.mark.usefixtures("quiet_environment")


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory):
    """Where the machine's compiler is proved once for all tests, not for each."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quiet_environment(monkeypatch, one_cache, without_accelerators):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(one_cache))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def broken_plugin(tmp_path, monkeypatch):
    """An installed distribution whose plugin cannot be imported."""
    info = tmp_path / "site" / "acme_plugin-3.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 3.2\n")
    (info / "entry_points.txt").write_text("[piecewise]\nacme = acme_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(info.parent))
    invalidate_caches()


class Runtime:
    """A DeviceRuntime over the CPU that a test may break."""

    def current_stream(self) -> Any: ...
    def new_stream(self) -> Any: ...
    def synchronize(self) -> None: ...

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext()


class Compiler:
    """A compiler that runs the graph and adds ``error`` to what it gives."""

    name = "acmec"

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def compile(self, graph, example_inputs, *, key, config):
        return CompiledGraph(lambda *inputs: [out + self.error for out in graph(*inputs)])

    def hash_factors(self):
        return {}


def acme(*, compiler=None, device=None, probe=None, **extra) -> PlatformInfo:
    platform = SimpleNamespace(
        device=device or Runtime(),
        graphs=None,
        compiler=compiler or Compiler(),
        capabilities=Capabilities(),
        **extra,
    )
    answer = probe or Probe(True, "a simulated board")
    return PlatformInfo("acme", "cpu", (1, 0), lambda: answer, lambda: platform)


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def diagnosed(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = doctor("--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def step_of(report: dict[str, Any], platform: str, title: str) -> dict[str, Any]:
    (checkup,) = [c for c in report["checkups"] if c["platform"] == platform]
    (step,) = [s for s in checkup["steps"] if s["title"] == title]
    return step


def plugin_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    (plugin,) = [p for p in report["plugins"] if p["name"] == name]
    return plugin


# The whole command ----------------------------------------------------------------


def test_the_installed_cpu_platform_is_active_and_computes():
    done = subprocess.run(
        [sys.executable, "-m", "piecewise_core.cli.main", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    report = json.loads(done.stdout)
    assert report["healthy"]
    assert report["versions"]["torch"] == torch.__version__
    cpu = plugin_of(report, "cpu")
    assert (cpu["status"], cpu["distribution"]) == ("active", "piecewise-cpu")
    assert "is right" in step_of(report, "cpu", "eager")["detail"]


def test_the_tables_show_versions_plugins_and_the_computation():
    result = doctor()
    assert result.exit_code == 0
    for shown in (f"torch {torch.__version__}", "piecewise-cpu", "active", "is right"):
        assert shown in result.stdout


@pytest.mark.parametrize(
    ("version", "side"), [("2.10.1", "older"), ("2.11.0+cu130", None), ("99.0.0a0+git1", "newer")]
)
def test_it_says_where_torch_is_outside_of_what_was_tested(version, side, monkeypatch):
    monkeypatch.setattr(torch.version, "__version__", version)
    code, report = diagnosed()
    assert code == 0
    assert report["versions"]["torch"] == version
    tested, untested = report["tested"]["torch"], report["tested"]["untested"]
    assert untested == (
        side and f"torch {version} is {side} than what piecewise is tested with, {tested}"
    )
    assert (untested or f"piecewise is tested with torch {tested}") in doctor().stdout


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"]])
def test_help_imports_no_torch(arguments):
    script = (
        "import sys; from piecewise_core.cli.main import main\n"
        f"main({arguments}, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert b"doctor" in done.stdout


# States ---------------------------------------------------------------------------


def test_a_broken_plugin_is_shown_and_does_not_make_the_machine_ill(broken_plugin, caplog):
    result = doctor()
    assert result.exit_code == 0
    assert "acme-plugin 3.2" in result.stdout
    assert "acme_that_is_not_there" in result.stdout
    assert result.stderr == ""

    code, report = diagnosed()
    assert code == 0
    broken = plugin_of(report, "acme")
    assert (broken["status"], broken["error"]) == ("failed", "PluginError")


def test_a_broken_choice_is_an_error_that_says_why(broken_plugin, monkeypatch):
    monkeypatch.setenv("PIECEWISE_PLATFORM", "acme")
    code, report = diagnosed()
    assert code == 1
    assert "acme-plugin 3.2" in report["error"]
    assert plugin_of(report, "cpu")["status"] == "found"
    assert "is right" in step_of(report, "cpu", "eager")["detail"]

    result = doctor()
    assert result.exit_code == 1
    assert f"No active platform: {report['error']}" in result.stdout


def test_an_unknown_platform_is_an_error_that_lists_what_there_is():
    code, report = diagnosed("--platform", "cupid")
    assert code == 1
    assert "cupid" in report["error"]
    assert "piecewise-cpu" in report["error"]


def test_every_available_platform_computes_and_the_best_is_active():
    with registered(acme()):
        code, report = diagnosed()
    assert code == 0
    assert {c["platform"]: c["active"] for c in report["checkups"]} == {"acme": True, "cpu": False}
    assert all(c["computes"] for c in report["checkups"])


def test_an_unavailable_platform_is_skipped_with_its_reason_verbatim():
    with registered(acme(probe=Probe(False, "no board in [slot 3]", {"bus": "7"}))):
        result = doctor()
        _, report = diagnosed()
    assert result.exit_code == 0
    assert "no board in [slot 3]" in result.stdout
    assert plugin_of(report, "acme")["status"] == "skipped"
    assert plugin_of(report, "acme")["facts"] == {"bus": "7"}
    assert [c["platform"] for c in report["checkups"]] == ["cpu"]


# Computing ------------------------------------------------------------------------


def test_an_active_platform_whose_device_fails_makes_the_exit_code_1():
    device = Runtime()
    device.synchronize = lambda: 1 / 0
    with registered(acme(device=device)):
        code, report = diagnosed()
        result = doctor()
    assert code == 1
    assert "ZeroDivisionError" in step_of(report, "acme", "eager")["detail"]
    assert "does not compute" in result.stdout


def test_a_failing_platform_that_is_not_active_is_shown_and_that_is_all():
    device = Runtime()
    device.synchronize = lambda: 1 / 0
    with registered(acme(device=device)):
        code, report = diagnosed("--platform", "cpu")
    assert code == 0
    assert not step_of(report, "acme", "eager")["ok"]


def test_wrong_numbers_are_noticed():
    with registered(acme(compiler=Compiler(error=0.5))):
        code, report = diagnosed("--compile")
    assert code == 1
    detail = step_of(report, "acme", "acmec")["detail"]
    assert detail.startswith("96 of 96 numbers are wrong")


def test_a_wrong_shape_is_noticed():
    compiler = Compiler()
    compiler.compile = lambda *_, **__: CompiledGraph(lambda *inputs: [inputs[0]])
    with registered(acme(compiler=compiler)):
        code, report = diagnosed("--compile")
    assert code == 1
    assert "shape [12, 16], not [12, 8]" in step_of(report, "acme", "acmec")["detail"]


def test_not_a_number_is_a_wrong_number():
    with registered(acme(compiler=Compiler(error=float("nan")))):
        code, _ = diagnosed("--compile")
    assert code == 1


def test_a_platform_s_own_compiler_is_tried_only_when_asked_for():
    with registered(acme(compiler=Compiler(error=0.5))):
        code, report = diagnosed()
    assert code == 0
    assert [s["title"] for s in report["checkups"][0]["steps"]] == ["eager"]


# The platform's own check ---------------------------------------------------------


def test_a_platform_that_checks_itself_shows_its_facts():
    with registered(acme(self_check=lambda: {"firmware": "8.1"})):
        _, report = diagnosed()
    assert step_of(report, "acme", "self-check")["detail"] == "firmware: 8.1"


def test_without_a_c_compiler_the_cpu_computes_uncompiled_and_says_what_to_install(monkeypatch):
    # The configuration, if Inductor is imported, read CXX long ago.
    monkeypatch.delitem(sys.modules, "torch._inductor.config", raising=False)
    monkeypatch.setenv("CXX", "no-such-c++")
    code, report = diagnosed()
    assert code == 0
    check = step_of(report, "cpu", "self-check")
    assert not check["ok"]
    assert "'no-such-c++' is not an executable" in check["detail"]
    assert "install g++" in check["detail"]
    assert "only uncompiled" in doctor().stdout

    code, report = diagnosed("--compile")
    assert code == 1
    assert not step_of(report, "cpu", "inductor")["ok"]


@pytest.mark.inductor
def test_compile_compiles_with_the_platform_s_own_compiler():
    code, report = diagnosed("--compile")
    assert code == 0
    assert "is right (compiled in" in step_of(report, "cpu", "inductor")["detail"]


# Torch and the environment --------------------------------------------------------


def doctor_alone(site, *arguments, **environ):
    command = [sys.executable, "-m", "piecewise_core.cli.main", "doctor", *arguments]
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def broken_backend(tmp_path):
    """A vendor's backend that torch loads by itself, and that lacks its library."""
    site = tmp_path / "vendor"
    info = site / "torch_acme-2.14.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-acme\nVersion: 2.14\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_acme = torch_acme:load\n")
    (site / "torch_acme.py").write_text(
        "def load():\n"
        "    try:\n"
        "        raise OSError('libacme.so.1: cannot open shared object file')\n"
        "    except OSError as error:\n"
        "        raise ImportError('acme cannot start') from error\n"
    )
    return site


def test_a_backend_that_breaks_torch_is_named_with_its_cause_and_nobody_else_is(broken_backend):
    done = doctor_alone(broken_backend, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    for text in (
        "the cause is OSError: libacme.so.1: cannot open shared object file",
        "torch-acme 2.14, which is its backend 'torch_acme'",
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0",
    ):
        assert text in report["torch_error"]
    assert (report["plugins"], report["checkups"], report["healthy"]) == ([], [], False)
    shown = doctor_alone(broken_backend)
    assert "Torch does not load, so no platform was tried: importing torch failed" in shown.stdout
    assert "piecewise-cpu" not in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_torch_that_cannot_be_imported_for_other_reasons_is_to_be_reinstalled(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libc10.so: no such file')")
    report = json.loads(doctor_alone(tmp_path, "--json").stdout)
    assert "ImportError: libc10.so: no such file; reinstall torch" in report["torch_error"]


def test_the_store_and_the_variables_are_shown_and_secrets_are_not(tmp_path, monkeypatch):
    root = tmp_path / "own"
    (root / "store").mkdir(parents=True)
    (root / "store" / "entry").write_bytes(b"x" * 2_500_000)
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(root))
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readonly")
    monkeypatch.setenv("PIECEWISE_SIGN_KEY", "hunter2")
    monkeypatch.setenv("PIECEWISE_CACHE_URL", "s3://user:secret@host")
    found = settings(os.environ)
    assert (found.mode, found.nbytes, found.files) == ("readonly", 2_500_000, 1)
    assert found.store == str(root / "store")
    text = str(found)
    assert f"compile store {root / 'store'} (readonly): 2.5 MB in 1 files" in text
    assert "PIECEWISE_CACHE_MODE=readonly" in text
    assert "PIECEWISE_SIGN_KEY=(set)" in text
    assert "hunter2" not in text
    assert "secret" not in text
    assert "no PIECEWISE_ variable is set" in str(settings({"HOME": str(tmp_path)}))
