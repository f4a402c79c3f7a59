from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata

import pytest
import torch

import piecewise_core as pw
from piecewise_core.plugins import all_passes, select
from piecewise_core.plugins.discovery import PluginEntry, discover


def test_discovery_reads_metadata_and_imports_nothing(site):
    site.install("acme-plugin", "2.1", entry="acme", source="raise SystemExit('imported')")

    assert discover() == (PluginEntry("acme-plugin", "acme", "2.1", "acme_plugin_plugin"),)
    assert site.imported() == []


def test_without_plugins_there_is_nothing_to_find(site):
    assert discover() == ()


def test_entries_come_by_distribution_whatever_the_order_of_installation(site):
    for name in ("zeta", "alpha", "mu"):
        site.install(name, entry=f"{name}-entry")

    assert [e.distribution for e in discover()] == ["alpha", "mu", "zeta"]


def test_a_distribution_found_twice_on_the_path_counts_once(site, tmp_path, monkeypatch):
    site.install("acme", "2.0", entry="acme")
    older = tmp_path / "older" / "acme-1.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (older / "entry_points.txt").write_text("[piecewise]\nacme = acme_plugin\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    importlib.invalidate_caches()

    assert [e.version for e in discover()] == ["2.0"]


def test_what_the_first_on_the_path_does_not_have_no_other_of_its_name_has(
    site, tmp_path, monkeypatch
):
    newer = tmp_path / "newer" / "acme-3.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 3.0\n")
    site.install("acme", "2.0", entry="acme")
    monkeypatch.setattr(sys, "path", [str(newer.parent), *sys.path])
    importlib.invalidate_caches()

    assert discover() == ()


def test_a_distribution_without_metadata_is_found_and_says_so(site):
    site.install("acme", entry="acme")
    (site.directory / "acme-1.0.dist-info" / "METADATA").unlink()
    importlib.invalidate_caches()

    (entry,) = discover()
    assert (entry.name, entry.version) == ("acme", "(no version)")


@pytest.mark.parametrize("written", ["Piecewise.CPU", "piecewise_cpu", "piecewise--cpu"])
def test_distribution_names_compare_as_package_indexes_compare_them(written):
    assert PluginEntry(written, "cpu", "1", "m").project == "piecewise-cpu"


def test_importing_the_platforms_imports_neither_torch_nor_a_plugin():
    script = (
        "import sys, piecewise_core.plugins, piecewise_core.cli.main\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'piecewise_cpu')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_one_compiled_model_looks_for_plugins_once(monkeypatch):
    looked, look = [], metadata.distributions
    monkeypatch.setattr(metadata, "distributions", lambda **k: looked.append(k) or look(**k))

    pw.compile(torch.nn.Linear(2, 2), pw.Config(compiler="eager"), "cpu")
    assert looked == [{}]


def test_of_fifty_installed_platforms_the_one_that_is_asked_for_is_imported(site, monkeypatch):
    for number in range(50):
        site.platform(f"acme-{number}", f"acme{number}")
    monkeypatch.setenv("PIECEWISE_PLATFORM", "acme7")

    assert select().platform.made_by == "acme7"
    all_passes()
    assert site.imported() == ["acme_7_plugin"]


def test_headers_are_read_whatever_follows_them(site):
    site.install("acme", "2.0", entry="acme")
    metadata = site.directory / "acme-2.0.dist-info" / "METADATA"
    text = "Metadata-Version: 2.1\r\nName: Acme\r\nClassifier: a\r\n Version: 9\r\nversion:2.0\r\n"
    metadata.write_bytes((text + "\r\nVersion: 3.0\r\n").encode())

    (entry,) = discover()
    assert (entry.distribution, entry.version) == ("Acme", "2.0")
