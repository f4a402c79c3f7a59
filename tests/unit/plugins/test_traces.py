from __future__ import annotations

import logging
import os
import random
import warnings

import pytest

from piecewise_core.plugins.discovery import discover
from piecewise_core.plugins.registry import load
from piecewise_core.plugins.traces import noted_changes, watched_import

GOOD = """
import {needs}
from piecewise_core.hookspecs import hookimpl
{does}
@hookimpl
def piecewise_passes():
    return []
"""


def loaded(site, does, needs="os"):
    site.install("acme", "3.2", entry="acme", source=GOOD.format(does=does, needs=needs))
    (entry,) = discover()
    load(entry)


def test_a_plugin_that_does_nothing_on_import_is_not_told_of(site, caplog):
    loaded(site, "pass")
    assert caplog.records == []


def test_what_a_plugin_prints_on_import_is_logged_under_its_name_and_not_printed(
    site, caplog, capsys
):
    loaded(site, "print('welcome to acme')")
    assert capsys.readouterr().out == ""
    assert r"acme 3.2: importing its plugin module printed 'welcome to acme\n'" in caplog.text


@pytest.fixture
def _put_back(monkeypatch):
    """What the plugins below change, as it was."""
    monkeypatch.setenv("ACME_HOME", "before")
    state, filters = random.getstate(), list(warnings.filters)
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    where = os.getcwd()
    yield
    random.setstate(state)
    warnings.filters[:] = filters
    logging.getLogger().setLevel(level)
    logging.getLogger().handlers[:] = handlers
    os.chdir(where)


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize(
    ("needs", "does", "told"),
    [
        ("os", "os.environ['ACME_HOME'] = '/opt'", "os.environ (ACME_HOME)"),
        ("os", "os.chdir('/')", "the working directory"),
        ("random", "random.seed(7)", "the state of random"),
        ("warnings", "warnings.simplefilter('ignore')", "the warnings filters"),
        ("logging", "logging.getLogger().setLevel(1)", "the root logger"),
        ("logging", "logging.getLogger().addHandler(logging.NullHandler())", "the root logger"),
    ],
)
def test_what_a_plugin_changes_for_the_whole_process_is_told_with_its_name(
    site, caplog, needs, does, told
):
    loaded(site, does, needs)
    assert f"acme 3.2: importing its plugin module changed {told} for the whole" in caplog.text


@pytest.mark.usefixtures("_put_back")
def test_a_plugin_loads_where_the_working_directory_is_gone(site, tmp_path, caplog):
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    loaded(site, "pass")
    assert caplog.records == []


def test_torchs_settings_count_where_torch_is_loaded(caplog):
    import torch

    with watched_import("acme 3.2"):
        torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)
    assert "changed torch.get_default_dtype() for" in caplog.text


def test_a_plugin_that_fails_on_import_is_told_of_too(caplog):
    def fail():
        print("looking for a board")
        raise OSError("no board")

    with pytest.raises(OSError, match="no board"), watched_import("acme 3.2"):
        fail()
    assert "printed 'looking for a board" in caplog.text


def test_what_a_block_changes_is_noted_with_torch_s_settings(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("ACME_HOME", "before")
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        with noted_changes() as changed:
            torch.set_num_threads(threads + 1)
            torch.set_float32_matmul_precision("medium")
        with noted_changes() as nothing:
            torch.ones(2)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert changed == ["torch.get_num_threads()", "torch.get_float32_matmul_precision()"]
    assert nothing == []
