#!/usr/bin/env bash
# An operator that returns its input compiles on a desk and raises in continuous integration: torch reads CI.
#
# Expected: a library does the same work wherever it runs, unless one of its own variables says otherwise.
# Seen in torch 2.13.0, CPU; older versions not tried: an operator made with torch.library.Library that returns its
# input is a warning under torch.compile, and a RuntimeError where the environment variable CI is set to anything,
# "false" too, when torch is imported. Eager says nothing, nor does backend="eager". The error does not name the
# variable.
# What to do: return a copy, as the schema promises. To see it at a desk: CI=1, or
# torch._functorch.config.error_on_custom_op_aliasing = True.
#
# Output:
#     without CI: UserWarning, then 2.0
#     CI=1: RuntimeError
#     CI=false: RuntimeError
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import os
import warnings

import torch

library = torch.library.Library("findings", "DEF")
library.define("same(Tensor x) -> Tensor")
library.impl("same", lambda x: x, "CompositeExplicitAutograd")


@torch.compile(backend="aot_eager")
def compiled(x):
    return torch.ops.findings.same(x) + 1


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        value = compiled(torch.ones(())).item()
        told = [w.category.__name__ for w in caught if "findings::same" in str(w.message)]
        seen = f"{told[0] if told else 'no warning'}, then {value}"
    except RuntimeError as error:
        assert "findings::same" in str(error), error
        seen = "RuntimeError"
where = f"CI={os.environ['CI']}" if "CI" in os.environ else "without CI"
print(f"{where}: {seen}")
assert seen == ("RuntimeError" if "CI" in os.environ else "UserWarning, then 2.0")
PY
for ci in '' CI=1 CI=false; do
    env -i PATH="$PATH" HOME="$dir" $ci "$dir/venv/bin/python" -I "$dir/probe.py"
done
