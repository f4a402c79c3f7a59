"""``piecewise cache``: what it shows, finds, removes, and carries to another machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from source_platform import SourceCompiler, SourcePlatform

import piecewise_core as pw
from piecewise_core.cli.main import main
from piecewise_core.store.files import ARTIFACT, FileStore

ROWS = pw.Dim("rows", 1, 64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "cache"))
    with torch.inference_mode():
        yield tmp_path / "cache"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["cache", *map(str, args)], terminal_width=200)


def facts(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*args, "--json").stdout)
    return found


def warmed(flag: str = "off", factor: float = 2.0):
    """A model of two pieces, compiled for two ranges."""
    config = pw.Config(
        dynamic={"x": {0: ROWS}},
        splitting_ops=("torch.nn.functional.softmax",),
        compile_ranges_endpoints=(8,),
    )
    platform = SourcePlatform(SourceCompiler({"opt": flag}))
    fast = pw.compile(lambda x: torch.nn.functional.softmax(x * 2, -1) + factor, config, platform)
    fast.warmup(torch.ones(3, 4), progress=False)
    return fast


def pieces(cache: Path) -> list[str]:
    return [m.key for m in FileStore(cache / "store").manifests() if m.adaptor == "source"]


@pytest.mark.parametrize("command", ["ls", "why", "verify", "prune", "export", "import"])
def test_every_command_has_help_and_json(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "--dir" in result.stdout


def test_an_empty_store_is_no_error_and_is_not_made(cache):
    assert facts("ls")["entries"] == []
    assert facts("why") == {"entries": []}
    assert facts("verify") == {"checked": 0, "damaged": {}, "refused": {}}
    assert facts("prune") == {"removed": [], "freed": 0, "left": 0}
    assert "nothing to export" in run("export", cache.parent / "x.zip").stderr
    assert not cache.exists()


def test_ls_lists_entries_with_what_they_are(cache):
    warmed()
    listed = facts("ls")
    assert listed["where"] == str(cache / "store" / "v1")
    found = [e for e in listed["entries"] if e["compiler"] == "source"]
    assert len(found) == 4
    for entry in found:
        assert entry["sizes"] in ("[1, 8]", "[9, 64]")
        assert entry["serves"] == entry["sizes"]
        assert entry["label"].startswith("region 0 piece ")
        assert entry["model"] == "warmed.<locals>.<lambda>"
        assert entry["factors"]["compiler.opt"] == "off"
        assert entry["bytes"] > 0
    text = run("ls").stdout
    assert found[0]["key"][:12] in text
    assert "region 0 piece 0" in text


class Encoder(torch.nn.Module):
    def forward(self, x):
        return x.sin()


def test_ls_names_models_whole_and_their_traces_too(cache):
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 8)}}, compiler="eager")
    pw.compile(Encoder(), config, platform="cpu")(torch.randn(3, 2))
    listed = facts("ls")["entries"]
    assert any(e["label"].startswith("trace of ") for e in listed)
    text = run("ls").stdout
    (line,) = [line for line in text.splitlines() if " trace " in line]
    assert "Encoder" in line
    assert "trace of" not in text


def test_why_names_the_one_factor_that_changed(cache):
    warmed("off")
    assert all(e["nearest"] is None for e in facts("why")["entries"])
    old = set(pieces(cache))
    warmed("on")
    explained = [e for e in facts("why")["entries"] if e["label"].startswith("region")]
    assert len(explained) == 4
    for entry in explained:
        assert entry["key"] not in old
        assert entry["nearest"] in old
        assert entry["differences"] == [{"factor": "compiler.opt", "old": "off", "new": "on"}]
    text = run("why", explained[0]["key"][:10]).stdout
    assert "compiler.opt was off, is on" in text
    assert explained[0]["nearest"][:12] in text


def test_why_tells_a_changed_model_from_a_changed_setting():
    warmed(factor=2.0)
    warmed(factor=3.0)
    explained = [e for e in facts("why")["entries"] if e["label"].startswith("region")]
    assert len(explained) == 2  # the other piece was found
    for entry in explained:
        assert [d["factor"] for d in entry["differences"]] == ["piece.graph"]


def test_a_key_that_names_no_entry_or_several_is_an_error():
    warmed()
    for key in ("zzz", ""):
        result = run("why", key)
        assert result.exit_code == 1
        assert "piecewise cache ls" in result.stderr


def test_verify_finds_what_is_damaged_and_is_content_afterwards(cache):
    warmed()
    assert run("verify").exit_code == 0
    key = pieces(cache)[0]
    file = FileStore(cache / "store").path(key) / ARTIFACT
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    result = run("verify", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert list(report["damaged"]) == [key]
    assert "SHA-256" in report["damaged"][key]
    assert run("verify").exit_code == 0
    assert warmed().stats().compilations == 1


def test_prune_removes_down_to_a_limit_or_everything(cache):
    warmed()
    assert facts("prune", "--limit", "1G")["removed"] == []
    before = facts("prune", "--limit", "1G")["left"]
    done = facts("prune", "--limit", str(before // 2))
    assert done["removed"]
    assert done["left"] <= before // 2
    (cache / "store" / "v1" / "quarantine").mkdir(exist_ok=True)
    assert facts("prune", "--all")["left"] == 0
    assert not (cache / "store" / "v1" / "quarantine").exists()
    assert "is no size" in run("prune", "--limit", "much").stderr
    assert warmed().stats().compilations == 4


def test_what_is_exported_serves_where_it_is_imported(cache, tmp_path, monkeypatch):
    warmed()
    file = tmp_path / "pieces.zip"
    count = len(list(FileStore(cache / "store").all_keys()))
    assert facts("export", file) == {"file": str(file), "entries": count}
    assert run("export", file).exit_code == 1
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "other"))
    assert facts("import", file) == {"file": str(file), "added": count, "known": 0}
    assert facts("import", file)["known"] == count
    assert warmed().stats().compilations == 0
    assert facts("verify")["checked"] == count


def test_single_entries_can_be_exported(cache, tmp_path):
    warmed()
    key = pieces(cache)[0]
    run("export", tmp_path / "one.zip", key[:16])
    assert facts("import", tmp_path / "one.zip", "--dir", tmp_path / "other")["added"] == 1
    assert pieces(tmp_path / "other") == [key]


def test_an_archive_with_one_bad_entry_adds_nothing(cache, tmp_path):
    import zipfile

    warmed()
    file, bad = tmp_path / "pieces.zip", tmp_path / "bad.zip"
    run("export", file)
    with zipfile.ZipFile(file) as good, zipfile.ZipFile(bad, "w") as archive:
        names = sorted(n for n in good.namelist() if n.endswith(ARTIFACT))
        for name in good.namelist():
            archive.writestr(name, b"evil" if name == names[-1] else good.read(name))
    result = run("import", bad, "--dir", tmp_path / "other")
    assert result.exit_code == 1
    assert "the artifact has 4 bytes" in result.stderr
    assert not (tmp_path / "other").exists()


def test_a_directory_that_cannot_be_trusted_is_one_line(cache):
    warmed()
    os.chmod(cache / "store", 0o777)
    for command in ("ls", "why", "verify", "prune"):
        result = run(command)
        assert result.exit_code == 1
        assert "other users can put code there" in result.stderr
    os.chmod(cache / "store", 0o700)
