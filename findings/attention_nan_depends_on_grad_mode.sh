#!/usr/bin/env bash
# nn.MultiheadAttention gives numbers or NaN for a sequence that is all padding, and grad mode decides which.
#
# Expected: in eval mode a result depends on inputs and weights. no_grad() changes no number.
# Seen in torch 2.13.0, CPU; older versions not tried: with need_weights=False the layer calls
# scaled_dot_product_attention, which gives zeros where nothing may be attended. With no_grad() and in eval mode it
# takes another kernel, which gives NaN there. With need_weights=True it is NaN always. So a batch filled up with an
# empty sequence is finite in a test with gradients on and NaN when served.
# What to do: let every sequence keep one place, and throw its result away; or set
# torch.backends.mha.set_fastpath_enabled(False) together with need_weights=False.
#
# Output:
#     need_weights=False, grad    finite
#     need_weights=False, no_grad NaN
#     need_weights=True,  grad    NaN
#     need_weights=True,  no_grad NaN
#     need_weights=False, no_grad, no fast path: finite
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

torch.manual_seed(0)
layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
x = torch.randn(2, 3, 8)
padding = torch.tensor([[False] * 3, [True] * 3])


def kind(need_weights, grad):
    with torch.set_grad_enabled(grad):
        result, _ = layer(x, x, x, key_padding_mask=padding, need_weights=need_weights)
    assert result[0].isfinite().all()
    return "NaN" if result[1].isnan().any() else "finite"


seen = {(need, grad): kind(need, grad) for need in (False, True) for grad in (True, False)}
for (need, grad), what in seen.items():
    print(f"need_weights={need!s}, ".ljust(20) + ("grad" if grad else "no_grad").ljust(7), what)
torch.backends.mha.set_fastpath_enabled(False)
slow = kind(False, False)
print("need_weights=False, no_grad, no fast path:", slow)
assert list(seen.values()) == ["finite", "NaN", "NaN", "NaN"] and slow == "finite"
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
