#!/usr/bin/env bash
# While one thread traces with torch.fx, another thread's plain call of a module fails.
#
# Expected: a trace changes nothing for other threads.
# Seen in torch 2.13.0, CPU: symbolic_trace and make_fx, which compilers run, replace torch.nn.Module.__call__ for the
# whole process while they trace. Beside make_fx a call of another model goes through the tracer's function; beside
# symbolic_trace it raises NameError, though nobody touched that model.
# What to do: trace and compile before other threads serve, or in a process of its own.
#
# Output:
#     make_fx:        Module.__call__ replaced for others True - their call: Tensor
#     symbolic_trace: Module.__call__ replaced for others True - their call: NameError: module is not installed as a submodule
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.4.6'

cat >"$dir/probe.py" <<'PY'
import threading

import torch
from torch.fx.experimental.proxy_tensor import make_fx

plain = torch.nn.Module.__call__
served = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
x = torch.ones(1, 2)


def during(trace):
    """(is Module.__call__ replaced, what a call of ``served`` gives) while ``trace`` is at work."""
    inside, go_on = threading.Event(), threading.Event()

    def wait():
        inside.set()
        go_on.wait(60)

    thread = threading.Thread(target=trace, args=(wait,))
    thread.start()
    inside.wait(60)
    try:
        replaced = torch.nn.Module.__call__ is not plain
        try:
            with torch.no_grad():
                outcome = type(served(x)).__name__
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
    finally:
        go_on.set()
        thread.join()
    assert torch.nn.Module.__call__ is plain
    return replaced, outcome


def by_make_fx(wait):
    make_fx(lambda t: (wait(), t + 1)[1])(torch.ones(2))


class Other(torch.nn.Module):
    def __init__(self, wait):
        super().__init__()
        self.wait = wait

    def forward(self, t):
        self.wait()
        return t + 1


def by_symbolic_trace(wait):
    torch.fx.symbolic_trace(Other(wait))


one, two = during(by_make_fx), during(by_symbolic_trace)
print("make_fx:        Module.__call__ replaced for others", one[0], "- their call:", one[1])
print("symbolic_trace: Module.__call__ replaced for others", two[0], "- their call:", two[1])
assert one == (True, "Tensor")
assert two[0]
assert two[1].startswith("NameError: module is not installed as a submodule")
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
