#!/usr/bin/env bash
# torch.full(size, a_tensor_of_integers) has integers in eager, and float32 when compiled.
#
# Expected: torch.full((2,), lengths.max()) has the dtype of its value, int64, as torch's documentation has it for
# integers and as torch.full((2,), 3) has compiled or not.
# Seen in torch 2.13.0, CPU, backend="eager" and so before any backend; older versions not tried: in eager a tensor
# of one element counts as a number, and int64 or bool comes out. torch.compile makes torch.empty(size).fill_(tensor) of
# it, which has the default dtype: integers above 2**24 are rounded, and what they are added to is float from there on.
# No graph break and no warning. torch.export does as eager.
# What to do: give dtype=, as in torch.full(size, value, dtype=value.dtype).
#
# Output (eager, compiled):
#     int64      torch.int64 16777217     torch.float32 16777216.0
#     bool       torch.bool True          torch.float32 1.0
#     dtype=     torch.int64 16777217     torch.int64 16777217
#     a number   torch.int64 3            torch.int64 3
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

programs = {
    "int64": (lambda t: torch.full((2,), t.max()), torch.tensor([1, 2**24 + 1])),
    "bool": (lambda t: torch.full((2,), t[0]), torch.tensor([True, False])),
    "dtype=": (lambda t: torch.full((2,), t.max(), dtype=t.dtype), torch.tensor([1, 2**24 + 1])),
    "a number": (lambda t: torch.full((2,), 3), torch.tensor([1])),
}
seen = {}
for name, (program, given) in programs.items():
    torch.compiler.reset()
    compiled = torch.compile(program, backend="eager", fullgraph=True)
    eager, ours = program(given), compiled(given)
    seen[name] = (eager.dtype, ours.dtype)
    print(f"{name:10} {f'{eager.dtype} {eager[0]}':24} {ours.dtype} {ours[0]}")
assert seen == {
    "int64": (torch.int64, torch.float32),
    "bool": (torch.bool, torch.float32),
    "dtype=": (torch.int64, torch.int64),
    "a number": (torch.int64, torch.int64),
}
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
