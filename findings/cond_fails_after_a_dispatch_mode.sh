#!/usr/bin/env bash
# One torch.cond under a dispatch mode, and every later torch.cond of the process raises.
#
# Expected: a mode (a profiler, a counter of operations) works inside its `with` block and leaves nothing behind.
# Seen in torch 2.13.0, CPU; older versions not tried: torch.cond called eagerly works under a TorchDispatchMode that
# supports such operators. After the block a plain torch.cond, with the same functions or with others, raises Dynamo's
# Unsupported. Without the mode it works any number of times.
# What to do: torch.compiler.reset() after the block. It throws away whatever torch.compile made, too.
#
# Output:
#     before: 2.0
#     in the mode: 2.0
#     after: Unsupported
#     other functions: Unsupported
#     after a reset: 2.0
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch
from torch._dynamo.exc import Unsupported
from torch.utils._python_dispatch import TorchDispatchMode


class Passing(TorchDispatchMode):
    supports_higher_order_operators = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def attempt(step=1):
    x = torch.ones(())
    try:
        return torch.cond(x > 0, lambda x: x + step, lambda x: x - step, (x,)).item()
    except Unsupported:
        return "Unsupported"


def other():
    x = torch.ones(3)
    try:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,)).tolist()
    except Unsupported:
        return "Unsupported"


seen = {"before": attempt()}
with Passing():
    seen["in the mode"] = attempt()
seen["after"] = attempt()
seen["other functions"] = other()
torch.compiler.reset()
seen["after a reset"] = attempt()
for when, what in seen.items():
    print(f"{when}: {what}")
assert list(seen.values()) == [2.0, 2.0, "Unsupported", "Unsupported", 2.0]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
