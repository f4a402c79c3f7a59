#!/usr/bin/env bash
# torch.compile asks again for what a program read, but not for os.getenv() and not past a __getattr__.
#
# Expected: a compiled function traces anew when a setting changes that it read in Python. For os.environ, attributes,
# dicts and globals it does.
# Seen in torch 2.13.0, CPU, backend="eager"; older versions not tried:
# 1. os.environ.get("SCALE") is asked again at every call; os.getenv("SCALE"), the same lookup, is fixed for good.
# 2. Where a class has __getattr__ (settings over a dict, wrappers), a value that __getattr__ found is asked again,
# but an attribute that is set later on the object, and comes first in Python, goes unseen.
# No graph break and no warning in either.
# What to do: read settings before the compiled function and pass them in, or call torch.compiler.reset() after a
# change.
#
# Output (eager and compiled after the change from 1 to 2):
#     os.environ.get      2.0 2.0
#     os.getenv           2.0 1.0
#     __getattr__, dict   2.0 2.0
#     __getattr__, object 2.0 1.0
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import os

import torch


class Settings:
    """Attributes that are looked up in a dict, unless the object has its own."""

    def __init__(self):
        self.values = {"scale": 1.0}

    def __getattr__(self, name):
        return self.__dict__["values"][name]


def after(function, change):
    """What eager and compiled give after the change."""
    torch.compiler.reset()
    os.environ["SCALE"] = "1"
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    x = torch.ones(())
    assert compiled(x) == function(x) == 1
    change()
    return function(x).item(), compiled(x).item()


def set_variable():
    os.environ["SCALE"] = "2"


one, two = Settings(), Settings()
seen = {
    "os.environ.get": after(lambda x: x * float(os.environ.get("SCALE")), set_variable),
    "os.getenv": after(lambda x: x * float(os.getenv("SCALE")), set_variable),
    "__getattr__, dict": after(lambda x: x * one.scale, lambda: one.values.update(scale=2.0)),
    "__getattr__, object": after(lambda x: x * two.scale, lambda: setattr(two, "scale", 2.0)),
}
for how, (eager, compiled) in seen.items():
    print(f"{how:19} {eager} {compiled}")
assert list(seen.values()) == [(2.0, 2.0), (2.0, 1.0), (2.0, 2.0), (2.0, 1.0)]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
