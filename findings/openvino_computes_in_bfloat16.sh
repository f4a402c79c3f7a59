#!/usr/bin/env bash
# A float32 model that OpenVINO compiles computes in bfloat16 where the processor can.
#
# Expected: a model whose weights, inputs and outputs are float32 is computed in float32, as on other processors.
# Seen in openvino 2026.4.1, CPU device, on a processor with bfloat16 (AVX512_BF16, AMX): the default of
# INFERENCE_PRECISION_HINT is bf16 there and f32 elsewhere. The same file gives other numbers on another machine;
# products of float32 are off by 0.2 %.
# What to do: core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"}).
#
# Needs a processor with bfloat16.
#
# Output (largest error of a product, relative to the largest number):
#     default bf16 0.0023
#     f32 0.0000006
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'openvino==2026.4.1' 'numpy==2.2.6'

cat >"$dir/probe.py" <<'PY'
import numpy as np
import openvino as ov
from openvino import opset13 as op

x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
weight = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
right = x.astype(np.float64) @ weight.astype(np.float64)


def error(**settings):
    given = op.parameter([-1, 256], ov.Type.f32)
    model = ov.Model([op.matmul(given, op.constant(weight), False, False)], [given])
    code = ov.Core().compile_model(model, "CPU", settings)
    found = code([x])[0]
    assert found.dtype == np.float32
    hint = code.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return hint, float(np.abs(found - right).max() / np.abs(right).max())


hint, off = error()
print("default", hint, f"{off:.4f}")
assert hint == "bf16" and off > 1e-3
hint, off = error(INFERENCE_PRECISION_HINT="f32")
print(hint, f"{off:.7f}")
assert hint == "f32" and off < 1e-5
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
