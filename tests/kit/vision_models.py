"""Models of timm and torchvision, tiny and random, in every way against themselves as written.

``python vision_models.py NAME ...``: prints one JSON object, name -> way -> what differs, or "".
No names: all of them. A process of its own: beside a CPU build of torch the operators of PyPI's
torchvision do not load, which no model here calls; their names are declared in their place, and
transformers would import torchvision where it is found.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

__all__ = ["MODELS", "WAYS"]

WAYS = ("captured", "recorded", "door")

TIMM = (
    *("byobnet", "coatnet", "convnext", "convnext2", "convnext3", "efficientnet"),
    *("efficientnet_evos", "efficientnet_gn", "efficientnet_ln", "mambaout", "maxvit", "nfnet"),
    *("resnet", "vit", "vit2", "vit3", "vit4", "vit_relpos"),
)
SMALL_VIT = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2}
SMALL_SWIN = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}
TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    "densenet": ("DenseNet", {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8}),
    "mnasnet": ("mnasnet0_5", {}),
    "mobilenet_v2": ("mobilenet_v2", {"width_mult": 0.25}),
    "mobilenet_v3": ("mobilenet_v3_small", {"width_mult": 0.25}),
    "regnet": ("regnet_y_400mf", {}),
    "resnet": ("resnet18", {}),
    "shufflenet": ("shufflenet_v2_x0_5", {}),
    "squeezenet": ("squeezenet1_1", {}),
    "swin": ("SwinTransformer", {**SMALL_SWIN, "window_size": [4, 4]}),
    "vit": ("VisionTransformer", {**SMALL_VIT, "hidden_dim": 16, "mlp_dim": 32}),
}
MODELS = (*(f"timm.{n}" for n in TIMM), *(f"torchvision.{n}" for n in TORCHVISION))


def declared() -> torch.library.Library | None:
    """The names of torchvision's operators, where these do not load; to be kept."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise SystemExit("torchvision is not installed: make vision")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        return None
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in re.findall(r'register_(?:meta\("|fake\("torchvision::)(\w+)"\)', text):
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


def built(name: str) -> tuple[torch.nn.Module, int]:
    """The model, and the side of the images that it takes."""
    torch.manual_seed(0)
    library, _, kind = name.partition(".")
    if library == "timm":
        timm = importlib.import_module("timm")
        model = timm.create_model(f"test_{kind}", num_classes=4)
        return model.eval(), model.default_cfg["input_size"][-1]
    models = importlib.import_module("torchvision.models")
    made, settings = TORCHVISION[kind]
    return getattr(models, made)(num_classes=4, **settings).eval(), 32


def ways(model: torch.nn.Module) -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """Each way to serve ``model``."""
    first = "input" if "input" in model.forward.__code__.co_varnames[:2] else "x"
    config = pw.Config(
        dynamic={first: {0: pw.Dim("batch", max=8)}},
        compiler="eager",
        capture_sizes=(2,),
        capture_max=False,
    )
    yield "captured", pw.compile(model, config, SimulatedPlatform())
    yield "recorded", pw.record(model, config, SimulatedPlatform())
    options = {"compiler": "eager"}
    yield "door", torch.compile(model, backend="piecewise", dynamic=True, options=options)


def judged(name: str) -> dict[str, str]:
    """What each way gets wrong; "" where nothing."""
    found = {}
    model, side = built(name)
    for way, fast in ways(model):
        found[way] = ""
        try:
            for batch in (2, 3, 1, 2, 2):
                x = torch.randn(batch, 3, side, side)
                torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
            if way != "door" and not fast.stats().calls["replayed"]:
                found[way] = "nothing was replayed"
        except Exception as error:
            found[way] = f"{type(error).__name__}: {error}"
    torch._dynamo.reset()
    return found


if __name__ == "__main__":
    kept = declared()
    with torch.no_grad():
        print(json.dumps({name: judged(name) for name in sys.argv[1:] or MODELS}))
