#!/usr/bin/env bash
# nn.Sequential(...).compile() compiles nothing and does not say so; torch.compile(nn.Sequential(...)) does.
#
# Expected: Module.compile() is documented as torch.compile of the module's call, in place: the backend gets a graph at
# the first call, whatever class the module is of.
# Seen in torch 2.13.0, CPU: for modules whose forward is torch's own (nn.Sequential, nn.Linear,
# and what inherits it, as class Model(nn.Sequential)) the backend is never called and there is no message; only
# fullgraph=True raises. Dynamo skips frames of torch's files, the call and that forward among them. A subclass that has
# a forward of its own is compiled.
# What to do: torch.compile(module), whose wrapper Dynamo does not skip, or a forward of one's own.
#
# Output (graphs that the backend got):
#     Sequential, in place             0
#     Sequential, in place, fullgraph  RuntimeError: found no compiled frames
#     Linear, in place                 0
#     inherits, in place               0
#     own forward, in place            1
#     Sequential, torch.compile        1
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch
from torch import nn


class Inherits(nn.Sequential):
    pass


class Own(nn.Sequential):
    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def layers():
    return nn.Linear(4, 4), nn.ReLU()


def graphs(model, in_place=True, **options):
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    if in_place:
        model.compile(backend=backend, **options)
    else:
        model = torch.compile(model, backend=backend, **options)
    try:
        with torch.no_grad():
            for rows in (2, 2, 3):
                model(torch.randn(rows, 4))
    except RuntimeError as error:
        assert "found no compiled frames" in str(error), error
        return "RuntimeError: found no compiled frames"
    return min(len(found), 1)


seen = {
    "Sequential, in place": graphs(nn.Sequential(*layers())),
    "Sequential, in place, fullgraph": graphs(nn.Sequential(*layers()), fullgraph=True),
    "Linear, in place": graphs(nn.Linear(4, 4)),
    "inherits, in place": graphs(Inherits(*layers())),
    "own forward, in place": graphs(Own(*layers())),
    "Sequential, torch.compile": graphs(nn.Sequential(*layers()), in_place=False),
}
for name, count in seen.items():
    print(f"{name:32} {count}")
assert list(seen.values()) == [0, "RuntimeError: found no compiled frames", 0, 0, 1, 1]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
