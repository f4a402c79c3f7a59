#!/usr/bin/env bash
# Inside one autocast region a weight that was changed goes on with its old values.
#
# Expected: a layer uses the weights that it has. An in-place change, load_state_dict() and an optimizer's step count
# at once.
# Seen in torch 2.13.0, CPU, bfloat16; older versions not tried: the first use in the region keeps the weight's cast
# until the outermost region ends. What changes the weight in between, load_state_dict() too, is not seen. With
# gradients off it is the same. A weight whose requires_grad is off is not kept, so a frozen model shows nothing of
# it.
# What to do: leave the region before weights change, or torch.autocast(..., cache_enabled=False), or
# torch.clear_autocast_cache() after the change.
#
# Output:
#     same region, weights now zero: kept the old ones
#     next region: zero
#     no_grad, same region: kept the old ones
#     requires_grad off: zero
#     cache_enabled=False: zero
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

x = torch.ones(1, 4)
zeros = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}


def is_zero(result):
    return bool((result == 0).all())


def after_loading(cache=True, grad=True, trained=True):
    """Whether zero weights, loaded inside the region, are used there and in the next one."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3).requires_grad_(trained)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache), torch.set_grad_enabled(grad):
        assert not is_zero(layer(x))
        layer.load_state_dict(zeros)
        inside = is_zero(layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return inside, is_zero(layer(x))


inside, outside = after_loading()
without_grad, _ = after_loading(grad=False)
frozen, _ = after_loading(trained=False)
without_cache, _ = after_loading(cache=False)
words = {True: "zero", False: "kept the old ones"}
print("same region, weights now zero:", words[inside])
print("next region:", words[outside])
print("no_grad, same region:", words[without_grad])
print("requires_grad off:", words[frozen])
print("cache_enabled=False:", words[without_cache])
assert not inside and not without_grad
assert outside and frozen and without_cache
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
