#!/usr/bin/env bash
# A backend that asks for shapes with FakeTensorProp is called anew for every size, if the model upsamples.
#
# Expected: FakeTensorProp computes with symbols and adds nothing to what Dynamo checks. With dynamic=True one graph
# serves all sizes.
# Seen in torch 2.13.0, CPU; older versions not tried: the propagation fixes the size of what F.interpolate is given.
# That becomes a guard of the function that is being compiled, so each new size is compiled anew. Poolings,
# convolutions, padding, attention and whatever else was tried stay dynamic.
# What to do: torch._dispatch.python.enable_python_dispatcher() around the propagation; torch's own compilers have it
# on.
#
# Output (compilations for 4 sizes):
#     no propagation 1
#     FakeTensorProp 4
#     FakeTensorProp under enable_python_dispatcher 1
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import contextlib

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

model = torch.nn.Upsample(scale_factor=2)


def compilations(propagate, around=contextlib.nullcontext):
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        if propagate:
            with around():
                FakeTensorProp(graph, detect_fake_mode(examples)).propagate(*examples)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    for size in (5, 6, 7, 8):
        assert compiled(torch.ones(1, 2, size, size)).shape == (1, 2, 2 * size, 2 * size)
    return len(graphs)


seen = {
    "no propagation": compilations(False),
    "FakeTensorProp": compilations(True),
    "FakeTensorProp under enable_python_dispatcher": compilations(True, enable_python_dispatcher),
}
for how, n in seen.items():
    print(how, n)
assert list(seen.values()) == [1, 4, 1]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
