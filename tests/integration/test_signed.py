"""``trust="signed"`` under compiled models, bundles and commands: nothing unsigned ever runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from source_platform import SourceCompiler, SourcePlatform

import piecewise_core as pw
from piecewise_core.cli.main import main
from piecewise_core.errors import ConfigError, SignatureRefused
from piecewise_core.store.entry import Entry, make_entry
from piecewise_core.store.files import FileStore

ROWS = pw.Dim("rows", 1, 64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "cache"))
    with torch.inference_mode():
        yield tmp_path / "cache"


def run(*args: object):
    return CliRunner().invoke(main, [*map(str, args)])


@pytest.fixture
def keys(tmp_path) -> Path:
    path = tmp_path / "keys.json"
    assert run("cache", "keygen", path, "--id", "first").exit_code == 0
    return path


def double(x):
    return torch.nn.functional.softmax(x * 2, -1) + 1


def warmed(compiler=None, **settings):
    config = pw.Config(
        dynamic={"x": {0: ROWS}}, splitting_ops=("torch.nn.functional.softmax",), **settings
    )
    fast = pw.compile(double, config, SourcePlatform(compiler))
    fast.warmup(torch.ones(3, 4), progress=False)
    x = torch.randn(5, 4)
    torch.testing.assert_close(fast(x), double(x))
    return fast


def signed(keys, **settings):
    return {"trust": "signed", "sign_key": keys, **settings}


def books(fast):
    stats = fast.stats()
    return stats.compilations, stats.cache_hits, stats.cache_refused


@pytest.mark.parametrize("mode", ["lazy", "background"])
def test_a_second_start_loads_what_the_first_one_signed(keys, mode):
    assert books(warmed(**signed(keys))) == (2, 0, 0)
    assert books(warmed(**signed(keys, compile_mode=mode))) == (0, 2, 0)
    assert books(warmed()) == (0, 2, 0)


def test_what_nobody_signed_is_compiled_again_and_explain_says_why(keys):
    warmed()
    events, compiler = [], SourceCompiler()
    fast = warmed(compiler, on_event=events.append, **signed(keys))
    assert books(fast) == (2, 0, fast.stats().cache_refused)
    assert fast.stats().cache_refused >= 2
    refused = [event for event in events if event.kind == "refused"]
    assert len(refused) == fast.stats().cache_refused
    assert {event.reason for event in refused} == {"it is not signed"}
    assert compiler.loaded == []
    assert "its entry was refused: it is not signed" in " ".join(str(fast.explain()).split())
    assert books(warmed(**signed(keys))) == (0, 2, 0)


def test_code_that_somebody_put_there_never_runs(keys, cache, tmp_path):
    """An entry, whole and with good checksums, whose code leaves a mark when it is run."""
    warmed(**signed(keys))
    store, mark = FileStore(cache / "store"), tmp_path / "mark"
    for manifest in [m for m in store.manifests() if m.adaptor == "source"]:
        old = store.get(manifest.key)
        evil = f"open({str(mark)!r}, 'w').close()\n".encode() + old.artifact
        made = make_entry(_ticket(manifest), evil, serves=manifest.serves, adaptor="source")
        store.put(Entry(made.manifest, evil, old.signature), replace=True)
    compiler = SourceCompiler()
    assert books(warmed(compiler, **signed(keys)))[:2] == (2, 0)
    assert compiler.loaded == []
    assert not mark.exists()
    warmed(SourceCompiler())  # now signed anew
    assert not mark.exists()


def _ticket(manifest):
    from piecewise_core.store.entry import Ticket

    return Ticket(manifest.key, manifest.factors, manifest.box, manifest.label)


def test_signed_without_a_key_is_refused_at_once():
    with pytest.raises(ConfigError, match="needs sign_key"):
        warmed(trust="signed")


def test_a_bundle_is_loaded_only_if_a_trusted_key_signed_it(keys, tmp_path, monkeypatch):
    path = tmp_path / "x.pwb"
    fast = warmed(**signed(keys))
    fast.save(path)
    x = torch.randn(3, 4)
    for _ in range(2):
        loaded = pw.load(path, double, SourcePlatform(), trust="signed", sign_key=keys)
        torch.testing.assert_close(loaded(x), double(x))
        assert loaded.stats().compilations == 0
        monkeypatch.setenv("PIECEWISE_TRUST", "signed")
        monkeypatch.setenv("PIECEWISE_SIGN_KEY", str(keys))
    assert run("bundle", "verify", path).exit_code == 0
    other = tmp_path / "other.json"
    run("cache", "keygen", other, "--id", "first")
    monkeypatch.setenv("PIECEWISE_SIGN_KEY", str(other))
    with pytest.raises(SignatureRefused, match="first does not hold"):
        pw.load(path, double, SourcePlatform(), trust="own", sign_key=keys)
    assert run("bundle", "verify", path).exit_code == 1
    monkeypatch.delenv("PIECEWISE_TRUST")
    monkeypatch.delenv("PIECEWISE_SIGN_KEY")
    assert pw.load(path, double, SourcePlatform())(x).shape == (3, 4)


def test_a_bundle_says_nothing_about_whom_to_believe_and_holds_no_key(keys, tmp_path):
    path = tmp_path / "x.pwb"
    warmed(**signed(keys)).save(path)
    with zipfile.ZipFile(path) as file:
        text = b"".join(file.read(name) for name in file.namelist())
    assert str(keys).encode() not in text
    assert json.loads(keys.read_text())["keys"]["first"]["secret"].encode() not in text
    unsigned = tmp_path / "y.pwb"
    warmed().save(unsigned)
    with pytest.raises(SignatureRefused, match=r"y.pwb is not loaded: it is not signed"):
        pw.load(
            unsigned, double, SourcePlatform(), trust="signed", sign_key=keys,
            on_mismatch="recompile",
        )  # fmt: skip
    assert run("bundle", "sign", unsigned, "--sign-key", keys).exit_code == 0
    pw.load(unsigned, double, SourcePlatform(), trust="signed", sign_key=keys)


def test_sign_and_verify_say_what_they_did(keys, cache):
    warmed()
    count = len(list(FileStore(cache / "store").all_keys()))
    done = run("cache", "verify", "--sign-key", keys, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["damaged"] == {}
    assert [*report["refused"].values()] == ["it is not signed"] * count
    assert run("cache", "verify").exit_code == 0
    assert f"{count} of {count} entries signed" in run("cache", "sign", "--sign-key", keys).output
    assert f"0 of {count} entries signed" in run("cache", "sign", "--sign-key", keys).output
    assert run("cache", "verify", "--sign-key", keys).exit_code == 0
    assert books(warmed(**signed(keys))) == (0, 2, 0)


def test_a_key_is_changed_for_another_without_a_miss(keys, tmp_path):
    warmed(**signed(keys))
    made = run("cache", "keygen", keys, "--id", "second", "--days", 90)
    assert "key second (hmac-sha256) signs, until" in made.output
    assert "2 trusted" in made.output
    assert books(warmed(**signed(keys))) == (0, 2, 0)
    only = json.loads(keys.read_text())
    del only["keys"]["first"]
    new = tmp_path / "new.json"
    new.write_text(json.dumps(only))
    new.chmod(0o600)
    assert run("cache", "verify", "--sign-key", new).exit_code == 1
    assert run("cache", "sign", "--again", "--sign-key", keys).exit_code == 0
    assert run("cache", "verify", "--sign-key", new).exit_code == 0
    assert "choose another --id" in run("cache", "keygen", keys, "--id", "second").output


def test_who_has_the_public_part_loads_and_keeps_nothing_of_its_own(tmp_path, cache):
    pytest.importorskip("cryptography")
    keys, public = tmp_path / "pair.json", tmp_path / "public.json"
    run("cache", "keygen", keys, "--ed25519", "--public", public)
    assert "private" in keys.read_text()
    assert "private" not in public.read_text()
    assert books(warmed(**signed(public))) == (2, 0, 0)
    assert list(FileStore(cache / "store").all_keys()) == []
    warmed(**signed(keys))
    assert books(warmed(**signed(public))) == (0, 2, 0)
    assert "none that signs" in run("cache", "sign", "--sign-key", public).output


def test_what_is_exported_is_imported_signed_or_not_at_all(keys, tmp_path, monkeypatch):
    warmed(**signed(keys))
    file = tmp_path / "entries.zip"
    run("cache", "export", file)
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIECEWISE_TRUST", "signed")
    monkeypatch.setenv("PIECEWISE_SIGN_KEY", str(keys))
    assert run("cache", "import", file).exit_code == 0
    assert books(warmed()) == (0, 2, 0)
    other = tmp_path / "other.json"
    run("cache", "keygen", other)
    monkeypatch.setenv("PIECEWISE_SIGN_KEY", str(other))
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "third"))
    refused = run("cache", "import", file)
    assert refused.exit_code == 1
    assert "not among those trusted" in refused.output
