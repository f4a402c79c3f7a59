#!/usr/bin/env bash
# round(size, -1) gives the size itself under torch.compile once the size is a symbol: no rounding, and no error.
#
# Expected: what Python gives, 10 for 13 rows; or that the size becomes a constant of that compilation.
# Seen in torch 2.13.0, CPU, backend "eager": the symbol's own __round__ takes the digits and leaves them out. With the
# first size, which is a constant, the answer is right; from the second one on it is the size. A float made of a size is
# rounded as it should be, and round(size / 3) too.
# What to do: whole numbers, (size + 5) // 10 * 10, or mark_static for the dim.
#
# Output:
#     13 rows: 10
#     24 rows: 24, and by itself 20
#     7 rows: 7, and by itself 10
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch


def padded(rows):
    return rows.new_full((), round(rows.shape[0], -1))


compiled = torch.compile(padded, backend="eager")
found = []
for size in (13, 24, 7):
    rows = torch.zeros(size)
    got, wanted = int(compiled(rows)), int(padded(rows))
    print(f"{size} rows: {got}" + (f", and by itself {wanted}" if got != wanted else ""))
    found.append((got, wanted))
assert found == [(10, 10), (24, 20), (7, 10)]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
