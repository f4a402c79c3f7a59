#!/usr/bin/env bash
# torch.unique_consecutive(x, dim=-1) of three dims has six when it is compiled or exported.
#
# Expected: dim=-1 is the last dim, traced as run: x of shape (5, 5, 5) gives (5, 5, count), as dim=2 does.
# Seen in torch 2.13.0, CPU, with torch.compile(fullgraph=True) and torch.export: the shape that is traced is
# (5, 5, count, 5, 5, 5), since the rule takes what lies behind a negative dim to begin at the front. What the program
# asks of its result, such as its number of dims, is answered from that and is wrong without a word; what the operator
# itself returns is right.
# What to do: give the dim from the front.
#
# Output (dims of the result: eager, compiled, exported):
#     dim=2   3 3 3
#     dim=-1  3 6 6
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

torch._dynamo.config.capture_dynamic_output_shape_ops = True
seen = {}
for dim in (2, -1):

    class Model(torch.nn.Module):
        def forward(self, x):
            found = torch.unique_consecutive(x, dim=dim)
            return found, found.dim()

    torch.compiler.reset()
    model, x = Model(), torch.zeros(5, 5, 5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    exported = torch.export.export(model, (x,)).module()
    results = [run(x) for run in (model, compiled, exported)]
    assert all(found.shape == (5, 5, 1) for found, _ in results)
    seen[dim] = [dims for _, dims in results]
    print(f"{f'dim={dim}':7}", *seen[dim])
assert seen == {2: [3, 3, 3], -1: [3, 6, 6]}
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
