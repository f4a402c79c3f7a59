"""A hit at the second level of the compile store over compiling the piece, on a loopback server.

    python benchmarks/fleet.py --layers 4 --rounds 5

The server speaks S3 (moto, with s3fs) where both are installed, else it is a shared directory. One
machine compiles a toy decoder with the platform's compiler from fresh caches and publishes; others,
with empty caches, fetch, verify (``trust="signed"``), keep and load. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from toy_decoder import OPS, Decoder, inputs

import piecewise_core as pw
from piecewise_core.store.files import FileStore
from piecewise_core.store.fleet.level import Level
from piecewise_core.store.fleet.store import FleetStore
from piecewise_core.store.fleet.urls import open_url
from piecewise_core.store.keys import Keys, new_key
from piecewise_core.store.signing import signer_of


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a second level that is empty."""
    try:
        import s3fs
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield f"file://{folder}/shared"
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/fleet"
    server.stop()


def machine(cache: Path, layers: int, **settings) -> tuple[pw.Stats, list[pw.Event]]:
    """What a model's warm-up did on a machine whose own cache is ``cache``."""
    os.environ["PIECEWISE_CACHE_DIR"] = str(cache)
    events: list[pw.Event] = []
    dim = pw.Dim("batch", 1, 64)
    config = pw.Config(
        dynamic={name: {0: dim} for name in ("x", "position", "mask")},
        splitting_ops=OPS,
        on_event=events.append,
        **settings,
    )
    torch.manual_seed(0)
    model = Decoder(layers, 256).eval()
    given = inputs(4, 256, "cpu", torch.float32)
    with torch.inference_mode():
        fast = pw.compile(model, config)
        fast.warmup(*given, progress=False)
        torch.testing.assert_close(fast(*given), model(*given), rtol=1e-3, atol=1e-4)
    return fast.stats(), events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as url:
        folder = Path(name)
        for cache in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            os.environ[cache] = str(folder / cache)
        keys = folder / "keys.json"
        key = new_key("benchmark", "hmac-sha256", None, 0)
        keys.touch(0o600)
        keys.write_text(Keys({key.id: key}, key.id).text())
        settings = {"cache_url": url, "trust": "signed", "sign_key": keys}
        cold, _ = machine(folder / "cold", options.layers, **settings)
        signer = signer_of("signed", keys)
        fetch_s: dict[str, list[float]] = {}
        load_s: list[float] = []
        compile_s: dict[str, float] = {}
        for turn in range(options.rounds):
            warm, events = machine(folder / f"warm-{turn}", options.layers, **settings)
            if warm.compilations or warm.fleet_hits < cold.compilations:
                raise SystemExit(f"the second machine did not fetch what there is: {warm}")
            load_s += [event.seconds for event in events if event.kind == "loaded"]
            level = Level(open_url(url, signed=True), signer)
            store = FleetStore(FileStore(folder / f"empty-{turn}", signer=signer), level)
            for manifest in [m for m in level.manifests() if "piece.form" in m.factors]:
                begun = time.perf_counter()
                if store.get(manifest.key) is None:
                    raise SystemExit("it is not there")
                fetch_s.setdefault(manifest.key, []).append(time.perf_counter() - begun)
                compile_s[manifest.key] = manifest.seconds
    fetched = {key: statistics.median(found) for key, found in fetch_s.items()}
    load = statistics.median(load_s)
    ratios = [(fetched[key] + load) / compile_s[key] for key in compile_s]
    result = {
        "url": url.partition(":")[0],
        "pieces": len(ratios),
        "compile_s": statistics.median(compile_s.values()),
        "fetch_s": statistics.median(fetched.values()),
        "load_s": load,
        "hit_ratio": statistics.median(ratios),
        "worst_hit_ratio": max(ratios),
        "bytes": warm.fleet_bytes,
        "saved_s": warm.fleet_saved_ms / 1000,
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
