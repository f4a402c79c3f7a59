#!/usr/bin/env bash
# Compiled with Inductor, a clone may be no clone where index_add_ or index_copy_ writes beside it.
#
# Expected: x.clone() is a copy of x as it was there, compiled or not.
# Seen in torch 2.13.0, CPU: Inductor leaves the clone out and makes the write in place. A row that is added from a
# clone of the tensor's own rows is read after the write has changed it; and a buffer whose clone is returned is
# returned itself, so that the next call changes an earlier result. Nothing warns. backend="aot_eager" is right, and
# so is add_() in place of index_add_().
# What to do: make the copy outside of what is compiled, or compile with backend="aot_eager".
#
# Output:
#     eager     first row [4.0, 6.0, 8.0, 10.0], first result [2.0, 2.0, 2.0, 2.0], the buffer False
#     aot_eager first row [4.0, 6.0, 8.0, 10.0], first result [2.0, 2.0, 2.0, 2.0], the buffer False
#     inductor  first row [4.0, 7.0, 10.0, 13.0], first result [4.0, 4.0, 4.0, 4.0], the buffer True
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.4.6'

cat >"$dir/probe.py" <<'PY'
import torch


def write(x):
    x.index_add_(0, torch.tensor([1, 0]), x[:2].clone())
    return x.sum()


class Count(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 4))

    def forward(self, x):
        self.seen.index_add_(0, torch.zeros(1, dtype=torch.int64), x.sum(0, keepdim=True))
        return self.seen.clone()


found = {}
for name, how in (
    ("eager", lambda f: f),
    ("aot_eager", lambda f: torch.compile(f, backend="aot_eager")),
    ("inductor", torch.compile),
):
    torch._dynamo.reset()
    x = torch.arange(12.0).view(3, 4)
    model = Count()
    with torch.no_grad():
        how(write)(x)
        counted = how(model)
        first = counted(torch.ones(2, 4))
        counted(torch.ones(2, 4))
    found[name] = (x[0].tolist(), first[0].tolist(), first.data_ptr() == model.seen.data_ptr())
    print(f"{name:9} first row {found[name][0]}, first result {found[name][1]}, the buffer {found[name][2]}")
right = ([4.0, 6.0, 8.0, 10.0], [2.0] * 4, False)
assert found["eager"] == found["aot_eager"] == right
assert found["inductor"] == ([4.0, 7.0, 10.0, 13.0], [4.0] * 4, True)
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
