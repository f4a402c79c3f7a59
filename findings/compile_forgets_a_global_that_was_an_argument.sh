#!/usr/bin/env bash
# torch.compile does not ask again for a global tensor that was a weight or an argument when it was traced.
#
# Expected: a compiled function traces anew when a global that it reads holds another tensor. It does, as a rule: rebind
# a global scale, and the next call has the new one.
# Seen in torch 2.13.0, CPU, backend="eager", fullgraph=True; older versions not tried: where the global was the same
# object as a weight of the model, or as an argument of the traced call, and code reads that one first, compiled code
# reads the weight or the argument from then on. Rebinding the global changes nothing: no new trace, no warning, the old
# number. Two globals that were one tensor are told apart, and so they are where the global is read first.
# Who meets it: a table that is shared as a module global and as an embedding's weight, and replaced later in one of the
# two places; a default kept in a global and passed to the first call (a warm-up, say).
# What to do: read the shared tensor by one name, or call torch.compiler.reset() after rebinding.
#
# Output (eager and compiled, after the global was bound to another tensor):
#     a global of its own      7.0 7.0
#     that was a weight        7.0 1.0
#     that was an argument     7.0 1.0
#     that was another global  7.0 7.0
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

ONE = torch.ones(())
table = other = ONE


class Layer(torch.nn.Module):
    """Reads its weight, which counts nothing here, and the global."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return x + self.weight * 0 + table


def with_argument(x, of):
    return x + of * 0 + table


def with_global(x):
    return x + other * 0 + table


def after_rebinding(function, first, then):
    """What eager and compiled give once ``table`` is another tensor."""
    global table
    table = ONE
    torch.compiler.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(*first) == function(*first) == 1
    table = torch.full((), 7.0)
    return function(*then).item(), compiled(*then).item()


zero, apart = torch.zeros(()), torch.ones(())
seen = {
    "a global of its own": after_rebinding(Layer(apart), [zero], [zero]),
    "that was a weight": after_rebinding(Layer(ONE), [zero], [zero]),
    "that was an argument": after_rebinding(with_argument, [zero, ONE], [zero, apart]),
    "that was another global": after_rebinding(with_global, [zero], [zero]),
}
for how, (eager, compiled) in seen.items():
    print(f"{how:24} {eager} {compiled}")
assert list(seen.values()) == [(7.0, 7.0), (7.0, 1.0), (7.0, 1.0), (7.0, 7.0)]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
