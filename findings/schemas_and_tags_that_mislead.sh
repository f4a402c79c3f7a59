#!/usr/bin/env bash
# Schemas of torch's own operators leave writes unmarked, and a comparison of whole tensors is tagged pointwise.
#
# Expected: a pass or a dispatch mode may trust alias_info.is_write for "writes to this argument", and
# torch.Tag.pointwise for "each element by itself".
# Seen in torch 2.13.0, CPU; older versions not tried:
# 1. aten::native_batch_norm in training writes running_mean and running_var. Its schema marks neither, is_mutable is
# False and no tag says so. aten::batch_norm's neither, but it has Tag.maybe_aliasing_or_mutating.
# 2. c10d::allreduce_ writes the tensors that it is given and marks none of them, whatever its name says.
# 3. aten::equal compares two whole tensors, gives one bool, and has Tag.pointwise.
# What to do: keep a table of exceptions beside the schema, or compare tensors' _version before and after a call.
#
# Output:
#     aten::native_batch_norm: marked False, running_mean written True
#     aten::batch_norm: marked False, running_mean written True
#     c10d::allreduce_: marked False
#     aten::equal: pointwise True, of three elements one bool
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch
import torch.distributed


def marked(op):
    return op._schema.is_mutable or any(
        a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments
    )


def norm(op, *rest):
    mean, var = torch.zeros(3), torch.ones(3)
    op(torch.ones(4, 3), None, None, mean, var, True, 0.1, 1e-5, *rest)
    written = bool((mean != 0).all())
    print(f"{op._schema.name}: marked {marked(op)}, running_mean written {written}")
    return marked(op), written


native, wrapped = torch.ops.aten.native_batch_norm.default, torch.ops.aten.batch_norm.default
assert norm(native) == norm(wrapped, False) == (False, True)
assert torch.Tag.maybe_aliasing_or_mutating not in native.tags
assert torch.Tag.maybe_aliasing_or_mutating in wrapped.tags

reduce = torch.ops.c10d.allreduce_.default
print(f"c10d::allreduce_: marked {marked(reduce)}")
assert not marked(reduce)

equal = torch.ops.aten.equal.default
tagged, result = torch.Tag.pointwise in equal.tags, equal(torch.ones(3), torch.ones(3))
print(f"aten::equal: pointwise {tagged}, of three elements one {type(result).__name__}")
assert tagged and result is True
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
