#!/usr/bin/env bash
# A forward under peft's disable_adapter() unmerges merged adapters, in place and for good.
#
# Expected: `with model.disable_adapter():` switches adapters off inside the block. Afterwards the model is as before:
# merged.
# Seen in peft 0.21.2 with torch 2.13.0, CPU; older versions not tried: the first forward in the block takes the
# merged update out of the weights, in place. Nothing puts it back when the block ends: later calls compute the
# adapter beside the layer again. Results stay right up to rounding, so nobody notices that serving is slower, that
# weights changed under whoever held their values (a graph, another thread, a checkpoint being written), and that they
# are no longer bit for bit the checkpoint's.
# What to do: merge_adapter() again after the block; keep a second, unmerged model for calls without adapters.
#
# Output:
#     merged before True, after True: block without a call
#     merged before True, after False: block with a call
#     weights written by the call True, equal to the checkpoint's False
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'transformers==5.23.0' 'accelerate==1.15.0' 'peft==0.21.2'

cat >"$dir/probe.py" <<'PY'
import peft
import torch

torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
checkpoint = base[0].weight.detach().clone()
config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
model = peft.get_peft_model(base, config).eval()
layer = model.base_model.model[0]
x = torch.randn(2, 64)

with torch.no_grad():
    want = model(x)
    model.merge_adapter()
    assert layer.merged and torch.allclose(model(x), want, atol=1e-4)
    with model.disable_adapter():
        pass
    idle = layer.merged
    weights = layer.base_layer.weight.clone()
    with model.disable_adapter():
        model(x)
    called = layer.merged
    after = layer.base_layer.weight
    assert torch.allclose(model(x), want, atol=1e-4)
print(f"merged before True, after {idle}: block without a call")
print(f"merged before True, after {called}: block with a call")
written, restored = not torch.equal(weights, after), torch.equal(after, checkpoint)
print(f"weights written by the call {written}, equal to the checkpoint's {restored}")
assert idle and not called and written and not restored
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
