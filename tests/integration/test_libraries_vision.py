"""timm and torchvision, in a process of their own, where ``make vision`` has installed them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vision_models import MODELS, WAYS

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / "build" / "vision"

IN_EVERY_RUN = ("timm.resnet", "timm.vit", "torchvision.mobilenet_v3", "torchvision.swin")


def judged(names):
    if not (INSTALLED / "torchvision").is_dir():
        pytest.skip("timm and torchvision are not installed: make vision")
    paths = os.pathsep.join([str(INSTALLED), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": paths}
    program = str(ROOT / "tests" / "kit" / "vision_models.py")
    done = subprocess.run(
        [sys.executable, program, *names], env=env, capture_output=True, text=True, timeout=2400
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def right(names):
    return {name: dict.fromkeys(WAYS, "") for name in names}


def test_some_models_are_served_in_every_way():
    assert judged(IN_EVERY_RUN) == right(IN_EVERY_RUN)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_all_models_are_served_in_every_way():
    assert judged(MODELS) == right(MODELS)
