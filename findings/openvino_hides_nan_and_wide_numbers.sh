#!/usr/bin/env bash
# OpenVINO's CPU device makes numbers of NaN, and computes int64 and float64 in 32 bits.
#
# Expected: relu(NaN) is NaN, as in torch, NumPy and ONNX Runtime; a model of int64 or float64, which take and give
# arrays of these types, computes in them, or is refused.
# Seen in openvino 2026.4.1, CPU device: relu(NaN) is 0, exp(NaN) is inf, and NaN > 0. Whole numbers are cut to their
# lower 32 bits, so 2**20 * 2**20 is 0 and 2**32 as a boolean is False. 1e300 becomes the largest float32.
# What to do: compare with another runtime on inputs with NaN; keep whole numbers below 2**31; leave float64 to others.
#
# Output:
#     relu nan 0.0
#     exp nan inf
#     nan > 0 True
#     2**20 * 2**20 0
#     bool(2**32) False
#     1e300 + 0 3.4028234663852886e+38
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'openvino==2026.4.1' 'numpy==2.2.6'

cat >"$dir/probe.py" <<'PY'
import numpy as np
import openvino as ov
from openvino import opset13 as op

core = ov.Core()
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(build, value, dtype):
    array = np.full((4,), value, dtype)
    given = op.parameter([-1], ov.Type(array.dtype))
    found = core.compile_model(ov.Model([build(given)], [given]), "CPU")([array])[0]
    return found[0].item()


zero = op.constant(np.zeros((), np.float32))
seen = {
    "relu nan": run(op.relu, np.nan, np.float32),
    "exp nan": run(op.exp, np.nan, np.float32),
    "nan > 0": run(lambda x: op.greater(x, zero), np.nan, np.float32),
    "2**20 * 2**20": run(lambda x: op.multiply(x, x), 2**20, np.int64),
    "bool(2**32)": run(lambda x: op.convert(x, "boolean"), 2**32, np.int64),
    "1e300 + 0": run(lambda x: op.add(x, op.constant(np.zeros(()))), 1e300, np.float64),
}
for what, value in seen.items():
    print(what, value)
largest = float(np.finfo(np.float32).max)
assert list(seen.values()) == [0.0, np.inf, True, 0, False, largest]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
