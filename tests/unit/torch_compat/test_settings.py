"""Settings of torch's as text: what it says must not depend on the process that asks."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from types import SimpleNamespace
from piecewise_core.torch_compat.settings import settings_text

held = {"names": {"a", "b", "c", "d"}, "maps": {k: {k, "z"} for k in {"x", "y"}}, "call": print}
config = SimpleNamespace(
    get_config_copy=lambda: {**held, "list": [1, (2.5, None)], "quiet": 7},
    _compile_ignored_keys={"quiet"},
)
print(settings_text(config))
"""


def test_sets_read_the_same_in_every_process_and_what_torch_ignores_is_left_out():
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    (text,) = found
    assert "names={'a', 'b', 'c', 'd'}" in text
    assert "call=builtins.print" in text
    assert "quiet" not in text
