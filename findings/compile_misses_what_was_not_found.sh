#!/usr/bin/env bash
# torch.compile does not ask again for a key or attribute that was missing, where the function caught the miss.
#
# Expected: a compiled function traces anew when a key or an attribute appears that it had looked for. For `"k" in d`,
# d.get("k") and getattr(o, "k", 0) it does.
# Seen in torch 2.13.0, CPU, backend="eager"; older versions not tried:
# 1. `try: d["k"]` with `except KeyError` goes on with the miss, though the dict was asked.
# 2. `try: o.k` with `except AttributeError` does, too.
# 3. sum(vars(o).values()), of an object that had no attributes, and len(vars(o)) go on without what it was given since.
# No graph break and no warning in any of them.
# What to do: write d.get("k", default) and getattr(o, "k", default), name the attributes, or call
# torch.compiler.reset() after a change.
#
# Output (eager and compiled after the change from 1 to 2):
#     d.get             2.0 2.0
#     getattr           2.0 2.0
#     except KeyError   2.0 1.0
#     except Attribute  2.0 1.0
#     vars, values      2.0 1.0
#     vars, len         2.0 1.0
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import types

import torch


def after(read, held, change):
    """What eager and compiled give after the change."""
    torch.compiler.reset()
    function = lambda x: x * read(held)  # noqa: E731
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    x = torch.ones(())
    assert compiled(x) == function(x) == 1
    change(held)
    return function(x).item(), compiled(x).item()


def key(held):
    try:
        return held["k"]
    except KeyError:
        return 1.0


def attribute(held):
    try:
        return held.k
    except AttributeError:
        return 1.0


def entry(held):
    held["k"] = 2.0


def given(held):
    held.k = 2.0


def one_more(held):
    held.more = 1.0


Plain = types.SimpleNamespace
seen = {
    "d.get": after(lambda held: held.get("k", 1.0), {}, entry),
    "getattr": after(lambda held: getattr(held, "k", 1.0), Plain(), given),
    "except KeyError": after(key, {}, entry),
    "except Attribute": after(attribute, Plain(), given),
    "vars, values": after(lambda held: 1 + sum(vars(held).values()), Plain(), one_more),
    "vars, len": after(lambda held: len(vars(held)), Plain(first=1.0), one_more),
}
for how, (eager, compiled) in seen.items():
    print(f"{how:17} {eager} {compiled}")
assert list(seen.values()) == [(2.0, 2.0)] * 2 + [(2.0, 1.0)] * 4
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
