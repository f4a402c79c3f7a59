#!/usr/bin/env bash
# A write to what an idle dropout returned changes its input in eager, and not when compiled.
#
# Expected: torch.compile changes no result.
# Seen in torch 2.13.0, CPU, with aot_eager (so with Inductor, whose front half it is) and with torch.export's
# run_decompositions(); older versions not tried: in eval mode dropout returns its input itself, the same tensor. So
# `h = dropout(x); h += 1` changes x too. In the compiled program h has memory of its own and x stays as it was.
# Nothing warns. backend="eager" is right.
# What to do: write `h = dropout(x) + 1`; do not write in place to what a dropout returns.
#
# Output:
#     eager       x [1.0, 1.0] h [1.0, 1.0]
#     compiled    x [0.0, 0.0] h [1.0, 1.0]
#     exported    x [0.0, 0.0] h [1.0, 1.0]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, x):
        h = self.dropout(x)
        h += 1
        return x, h


def show(how, call):
    x, h = (t.tolist() for t in call(torch.zeros(2)))
    print(f"{how:11} x {x} h {h}")
    return x, h


model = Residual().eval()
with torch.no_grad():
    eager = show("eager", model)
    compiled = show("compiled", torch.compile(model, backend="aot_eager"))
    program = torch.export.export(model, (torch.zeros(2),)).run_decompositions()
    exported = show("exported", program.module())

assert eager == ([1.0, 1.0], [1.0, 1.0])
assert compiled == exported == ([0.0, 0.0], [1.0, 1.0])
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
