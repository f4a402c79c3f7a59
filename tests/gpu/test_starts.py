"""A second process on a GPU starts from the store, or from a bundle, without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.inductor]

PROGRAM = """
    import json, sys
    import torch
    import piecewise_core as pw
    from torch import nn
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    measured, measure = [], CachingAutotuner.benchmark_all_configs

    def measuring(kernel, *args, **kwargs):
        measured.append(kernel.fn.__name__)
        return measure(kernel, *args, **kwargs)

    CachingAutotuner.benchmark_all_configs = measuring

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = torch.softmax(nn.functional.layer_norm(layer(x).sin(), (64,)), -1)
            return x

    how, place, device = sys.argv[1:]
    torch.cuda.set_device(device)
    torch.manual_seed(0)
    model = Model().to(device).eval()
    started = []
    sys.addaudithook(lambda e, a: started.append([*a[1]]) if e == "subprocess.Popen" else None)
    with torch.inference_mode():
        if how == "load":
            fast = pw.load(place, model)
        else:
            rows = pw.Dim("rows", 1, 64)
            config = pw.Config(
                dynamic={"x": {0: rows}}, splitting_ops=("torch.softmax",), capture_sizes=(8, 64)
            )
            fast = pw.compile(model, config)
        fast.warmup(torch.randn(3, 64, device=device), progress=False)
        for size in (8, 64, 5):
            x = torch.randn(size, 64, device=device)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
        if how == "save":
            fast.save(place)
    from torch._dynamo.utils import counters
    stats = fast.stats()
    print(json.dumps({
        "traced": stats.graphs,
        "frames": counters["stats"]["unique_graphs"],
        "compiled": stats.compilations,
        "found": stats.cache_hits,
        "replayed": stats.calls["replayed"],
        "measured": measured,
        "started": started,
    }))
"""


def run(tmp_path, how: str, *, device: str = "cuda:0", store: str = "store", **environ: str):
    environment = {
        **os.environ,
        "PIECEWISE_CACHE_MODE": "readwrite",
        "PIECEWISE_CACHE_DIR": str(tmp_path / store),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"inductor-{how}-{store}"),
        "TRITON_CACHE_DIR": str(tmp_path / f"triton-{how}-{store}"),
        **environ,
    }
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), how, str(tmp_path / "m.pwb"), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def started_warm(result, *, bundle: bool = False) -> None:
    """Nothing was traced or compiled. Torch and Triton ask for versions and where libraries are.

    ``bundle``: it says in which configuration kernels run; entries of the store are older.
    """
    assert result.pop("found") > 0
    assert not (result.pop("measured") and bundle)
    compilers = [c for c in result.pop("started") if not only_asks(c)]
    assert compilers == []
    assert result == {"traced": 0, "frames": 0, "compiled": 0, "replayed": 2}


def only_asks(command: list[str]) -> bool:
    return os.path.basename(command[0]) in ("ldconfig", "file") or "--version" in command


def test_the_store_and_a_bundle_bring_all_that_was_compiled(tmp_path):
    first = run(tmp_path, "save")
    assert first["compiled"] > 0
    assert first["found"] == 0
    assert first["measured"]  # else this says nothing of what a bundle brings
    started_warm(run(tmp_path, "load", store="elsewhere"), bundle=True)
    # An entry of the store is older than the first capture, so it has no kernel that stages.
    started_warm(run(tmp_path, "compile", TRITON_CACHE_DIR=str(tmp_path / "triton-save-store")))


def test_a_bundle_saved_from_the_store_brings_as_much(tmp_path):
    run(tmp_path, "save")
    run(tmp_path, "save", TRITON_CACHE_DIR=str(tmp_path / "triton-save-store"))
    started_warm(run(tmp_path, "load", store="elsewhere"), bundle=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_bundle_and_the_store_serve_another_device_that_is_the_only_visible_one(tmp_path):
    run(tmp_path, "save")
    second = {"CUDA_VISIBLE_DEVICES": "1"}
    started_warm(run(tmp_path, "load", store="elsewhere", **second))
    second["TRITON_CACHE_DIR"] = str(tmp_path / "triton-save-store")
    started_warm(run(tmp_path, "compile", **second))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_first_is_served_by_code_of_its_own(tmp_path):
    run(tmp_path, "save")
    result = run(tmp_path, "compile", device="cuda:1")
    assert result["compiled"] > 0
    assert result["replayed"] == 2
