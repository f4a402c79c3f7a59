#!/usr/bin/env bash
# Two layers that share one weight have two after to_empty() and after load_state_dict(assign=True).
#
# Expected: both fill a model that was made on the meta device. What was one parameter stays one: .to() and deepcopy
# keep it so.
# Seen in torch 2.13.0, CPU; older versions not tried: to_empty() makes a new parameter for each *name*, with memory
# of its own; assign=True makes one for each name too, over whatever memory the state dict's tensors have. Nothing
# warns. Trained after to_empty(), head and embedding drift apart; an optimizer now has two parameters either way.
# What to do: tie again after either (model.tie_weights() in transformers), or check len(list(model.parameters())).
#
# Output:
#     parameters: made 1, deepcopy 1, .to(float64) 1, to_empty 2, assign=True 2
#     one memory: to_empty False
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import copy

import torch


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def count(model):
    return len(list(model.parameters()))


model = Tied()
with torch.device("meta"):
    emptied, assigned = Tied(), Tied()
assert count(emptied) == count(assigned) == 1
emptied.to_empty(device="cpu")
assigned.load_state_dict(model.state_dict(), assign=True)

copied, moved = count(copy.deepcopy(model)), count(copy.deepcopy(model).to(torch.float64))
print(
    f"parameters: made {count(model)}, deepcopy {copied}, .to(float64) {moved},"
    f" to_empty {count(emptied)}, assign=True {count(assigned)}"
)
shared = emptied.embed.weight.data_ptr() == emptied.head.weight.data_ptr()
print("one memory: to_empty", shared)
assert (count(model), copied, moved, count(emptied), count(assigned)) == (1, 1, 1, 2, 2)
assert not shared
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
