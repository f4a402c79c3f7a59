#!/usr/bin/env bash
# Tensors that safetensors loaded go on changing with the file, until something writes to them.
#
# Expected: load_file() returns tensors of one's own. What happens to the file later is of no matter.
# Seen in safetensors 0.8.0 with torch 2.13.0, CPU, Linux; older versions not tried: on the CPU the tensors are the
# file, mapped into memory. Values written into the file in place turn up in a model that was loaded before, also
# after load_state_dict(assign=True). The other way nothing goes: what is written to the tensor is not in the file,
# and that tensor follows the file no longer. torch.load() copies, unless asked to map.
# What to do: replace a checkpoint by writing a new file and renaming it, never in place; or .clone() what is kept.
#
# Output (the last of 4 ones, after a zero was written into the file):
#     load_file 0.0
#     assigned to a layer 0.0
#     clone 1.0
#     the file, after the tensor was filled with 7: [1.0, 1.0, 1.0, 0.0]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.2.6' 'safetensors==0.8.0'

cat >"$dir/probe.py" <<'PY'
import os
import sys

import torch
from safetensors.torch import load_file, save_file

path = os.path.join(sys.argv[1], "weights.safetensors")
save_file({"weight": torch.ones(1, 4)}, path)
loaded = load_file(path)["weight"]
layer = torch.nn.Linear(4, 1, bias=False)
layer.load_state_dict(load_file(path), assign=True)
cloned = load_file(path)["weight"].clone()

with open(path, "r+b") as file:  # the file ends with the last element
    file.seek(-4, os.SEEK_END)
    file.write(bytes(4))

seen = [t[0, -1].item() for t in (loaded, layer.weight, cloned)]
for how, value in zip(("load_file", "assigned to a layer", "clone"), seen):
    print(how, value)
loaded.fill_(7)
kept = load_file(path)["weight"][0].tolist()
print("the file, after the tensor was filled with 7:", kept)
assert seen == [0.0, 0.0, 1.0]
assert kept == [1.0, 1.0, 1.0, 0.0]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py" "$dir"
