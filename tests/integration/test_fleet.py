"""One compile per fleet: models on several machines, each with a cache of its own, and one URL."""

from __future__ import annotations

import json
import os
import socket
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import source_platform
import torch
from click.testing import CliRunner
from source_platform import SourceCompiler, SourcePlatform

import piecewise_core as pw
from piecewise_core.cli.main import main
from piecewise_core.errors import ConfigError
from piecewise_core.store.fleet.packing import name_of
from piecewise_core.store.fleet.urls import open_url

KIT = str(Path(source_platform.__file__).parent)


@pytest.fixture(autouse=True)
def _inference(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.delenv("PIECEWISE_CACHE_DIR", raising=False)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on a server of this process."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket/fleet"
    running.stop()


@pytest.fixture
def keys(tmp_path) -> Path:
    assert CliRunner().invoke(main, ["cache", "keygen", str(tmp_path / "keys.json")]).exit_code == 0
    return tmp_path / "keys.json"


@pytest.fixture(params=["file", "memory", "s3"])
def settings(request, tmp_path, keys):
    """Of a second level that is empty."""
    if request.param == "s3":
        url = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        return {"cache_url": url, "trust": "signed", "sign_key": keys}
    if request.param == "memory":
        pytest.importorskip("fsspec")
    return {"cache_url": f"{request.param}://{tmp_path}/shared"}


def double(x):
    return torch.nn.functional.softmax(x * 2, -1) + 1


def machine(cache: Path, compiler=None, warm=True, **settings):
    """The model, compiled on a machine whose own cache is ``cache``."""
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        cache_dir=cache,
        **settings,
    )
    fast = pw.compile(double, config, SourcePlatform(compiler))
    if warm:
        fast.warmup(torch.ones(3, 4), progress=False)
        x = torch.randn(5, 4)
        torch.testing.assert_close(fast(x), double(x))
    return fast


@pytest.mark.parametrize("mode", ["lazy", "background"])
def test_a_second_machine_compiles_nothing(tmp_path, settings, mode):
    first = machine(tmp_path / "a", **settings)
    assert first.stats().compilations == 2
    assert first.stats().fleet_published >= 2
    compiler = SourceCompiler()
    second = machine(tmp_path / "b", compiler, compile_mode=mode, **settings)
    stats = second.stats()
    assert (stats.compilations, stats.cache_hits) == (0, 2)
    assert compiler.compiled == []
    assert stats.fleet_hits >= 2
    assert stats.fleet_bytes > 0
    assert stats.graphs == 0  # its trace was there too
    # What was fetched is the machine's own from then on.
    third = machine(tmp_path / "b", **settings)
    assert (third.stats().cache_hits, third.stats().fleet_hits) == (2, 0)
    assert settings["cache_url"] in str(second.status())
    assert "in use" in second.status().second_level


def test_what_somebody_put_there_is_not_run(tmp_path, settings, keys):
    signed = {**settings, "trust": "signed", "sign_key": keys}
    machine(tmp_path / "a", **signed)
    objects = open_url(settings["cache_url"], signed=True)
    for found in list(objects.listed("v1/entries")):
        data = objects.read(found.name, 1 << 20)
        objects.write(found.name, data.replace(b"return", b"retorn"))
    compiler = SourceCompiler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = machine(tmp_path / "b", compiler, **signed)
    assert fast.stats().compilations == 2
    assert compiler.loaded == []
    assert machine(tmp_path / "c", **signed).stats().compilations == 0  # it was put right


def test_a_machine_without_network_compiles_and_says_so_once(tmp_path, keys, monkeypatch):
    pytest.importorskip("s3fs")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    signed = {"cache_url": "s3://bucket/x", "trust": "signed", "sign_key": keys}
    with pytest.warns(RuntimeWarning, match="does not answer"):
        fast = machine(tmp_path / "a", **signed)
    assert fast.stats().compilations == 2
    assert "does not answer" in str(fast.status())


def test_missing_credentials_are_one_warning(tmp_path, keys, s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.warns(RuntimeWarning, match=r"does not answer .*[Cc]redentials"):
        fast = machine(tmp_path / "a", cache_url=s3, trust="signed", sign_key=keys)
    assert fast.stats().compilations == 2


def test_a_url_that_others_write_to_is_refused_without_signatures_when_the_model_is_made(tmp_path):
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigError, match="whoever can write to a s3:// URL"):
        machine(tmp_path / "a", cache_url="s3://bucket/x")


@pytest.mark.parametrize("switch", ["off", "readonly"])
def test_the_mode_of_the_store_is_that_of_both_levels(tmp_path, monkeypatch, switch):
    url = f"file://{tmp_path}/shared"
    machine(tmp_path / "a", cache_url=url)
    (tmp_path / "b" / "store" / "v1").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", switch)
    fast = machine(tmp_path / "b", cache_url=url)
    assert fast.stats().compilations == (2 if switch == "off" else 0)
    (tmp_path / "shared").rename(tmp_path / "gone")
    assert machine(tmp_path / "b", cache_url=url).stats().compilations == 2
    assert not (tmp_path / "shared").exists()


def test_commands_look_at_the_second_level_too(tmp_path, keys):
    url = f"file://{tmp_path}/shared"
    machine(tmp_path / "a", cache_url=url, trust="signed", sign_key=keys)

    def run(*args):
        return CliRunner().invoke(main, ["cache", *map(str, args)])

    listed = json.loads(run("ls", "--url", url, "--json").stdout)
    assert listed["where"] == url
    assert len(listed["entries"]) == 3  # two pieces and the trace
    checked = run("verify", "--url", url, "--sign-key", keys, "--json")
    assert json.loads(checked.stdout) == {"checked": 3, "damaged": {}, "refused": {}}
    path = tmp_path / "shared" / name_of(listed["entries"][0]["key"])
    path.write_bytes(path.read_bytes()[:-1])
    checked = run("verify", "--url", url, "--sign-key", keys, "--json")
    assert checked.exit_code == 1
    assert [*json.loads(checked.stdout)["damaged"]] == [listed["entries"][0]["key"]]
    done = json.loads(run("prune", "--url", url, "--all", "--json").stdout)
    assert len(done["removed"]) == 3
    assert json.loads(run("ls", "--url", url, "--json").stdout)["entries"] == []


def test_machines_that_start_at_once_compile_each_piece_once(tmp_path, fresh_processes):
    """Processes with caches of their own."""
    program = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {KIT!r})
        import torch
        from pathlib import Path
        import piecewise_core as pw
        from source_platform import SourcePlatform

        def double(x):
            return torch.nn.functional.softmax(x * 2, -1) + 1

        config = pw.Config(
            dynamic={{"x": {{0: pw.Dim("rows", 1, 64)}}}},
            splitting_ops=("torch.nn.functional.softmax",),
            cache_dir=sys.argv[1],
            cache_url={f"file://{tmp_path}/shared"!r},
        )
        with torch.inference_mode():
            fast = pw.compile(double, config, SourcePlatform())
            fast.warmup(torch.ones(3, 4), progress=False)
            x = torch.randn(5, 4)
            torch.testing.assert_close(fast(x), double(x))
        """)
    environ = {**os.environ, "SOURCE_LOG": str(tmp_path / "log"), "SOURCE_SECONDS": "0.5"}
    machines = [str(tmp_path / name) for name in "abc"]
    done = fresh_processes.run_at_once(program, machines, env=environ)
    assert done.returncode == 0, done.stderr
    made = [line.split("\t")[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(made) == len(set(made)) == 2
