#!/usr/bin/env bash
# torch.compile does not see that a list inside of a tuple changed: the tuple is guarded as a constant, by itself.
#
# Expected: as for a list that the model holds directly, whose items are guarded: a change compiles anew.
# Seen in torch 2.13.0, CPU; older versions not tried: an attribute that is a tuple with a list in it has one guard. It
# compares the tuple with the object that was there when it compiled. That is the same object, with the new items in it,
# so it is equal, and the code goes on with the old number.
# What to do: hold lists in attributes of their own, put new tuples in place of changing what is in them, or call
# torch.compiler.reset() after a change.
#
# Output:
#     a list: follows
#     a list in a tuple: the old number
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scales = [2.0]
        self.named = ("scales", [2.0])


class Direct(Model):
    def forward(self, x):
        return x * self.scales[0]


class Inside(Model):
    def forward(self, x):
        return x * self.named[1][0]


def after_a_change(model):
    compiled, x = torch.compile(model, backend="eager"), torch.ones(2)
    compiled(x)
    model.scales[0] = model.named[1][0] = 5.0
    same = torch.equal(compiled(x), model(x))
    return "follows" if same else "the old number"


direct, inside = after_a_change(Direct()), after_a_change(Inside())
print("a list:", direct)
print("a list in a tuple:", inside)
assert direct == "follows"
assert inside == "the old number"
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
