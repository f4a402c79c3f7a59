#!/usr/bin/env bash
# nn.MultiheadAttention gives None for its weights where the batch is empty, in eval mode without gradients only.
#
# Expected: with need_weights=True, which is the default, the second result is a tensor of shape (batch, queries, keys),
# (0, 3, 3) for a batch of no rows, as it is in training mode, and in eval mode with gradients on.
# Seen in torch 2.13.0, CPU: under no_grad() or inference_mode() in eval mode the second result is None. The kernel that
# serves this mode gives weights for any batch but an empty one.
# What to do: do not unpack weights of a batch that may be empty, or skip the call where it is.
#
# Output (mode, gradients, shape of the weights for a batch of 2 and of 0):
#     train True  (2, 3, 3) (0, 3, 3)
#     train False (2, 3, 3) (0, 3, 3)
#     eval  True  (2, 3, 3) (0, 3, 3)
#     eval  False (2, 3, 3) None
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
seen = {}
for mode in ("train", "eval"):
    for gradients in (True, False):
        attention.train(mode == "train")
        shapes = []
        for batch in (2, 0):
            x = torch.ones(batch, 3, 8)
            with torch.set_grad_enabled(gradients):
                out, weights = attention(x, x, x, need_weights=True)
            assert out.shape == (batch, 3, 8)
            shapes.append(None if weights is None else tuple(weights.shape))
        print(f"{mode:5} {gradients!s:5}", *shapes)
        seen[mode, gradients] = shapes[1]
empty = (0, 3, 3)
assert list(seen.values()) == [empty, empty, empty, None]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
