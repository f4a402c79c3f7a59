#!/usr/bin/env bash
# f"{n}" == "5" is False for n = 5 under torch.compile(dynamic=True), with no error: the branch is the wrong one.
#
# Expected: what Python gives, or a guard on the number that is asked for.
# Seen in torch 2.13.0, CPU, backend "eager": with dynamic=True an int argument is a symbol. A text that an f-string
# makes of it is compared during the trace, comes out unequal, and leaves no guard. str(n) == "5", "%d" % n and n == 5
# are answered rightly, and so are the text of a tensor's size and, without dynamic=True, that of an int.
# What to do: compare the number, or str(n).
#
# Output:
#     3: other
#     4: other
#     5: other, and by itself five
#     5 by str(): five
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch


def by_f_string(x, n):
    return x + 1 if f"{n}" == "5" else x


def by_str(x, n):
    return x + 1 if str(n) == "5" else x


def name(fn, n):
    return "five" if fn(torch.zeros(1), n).item() else "other"


compiled = torch.compile(by_f_string, backend="eager", dynamic=True)
for n in (3, 4, 5):
    got, wanted = name(compiled, n), name(by_f_string, n)
    print(f"{n}: {got}" + (f", and by itself {wanted}" if got != wanted else ""))
assert (got, wanted) == ("other", "five")
compiled = torch.compile(by_str, backend="eager", dynamic=True)
got = [name(compiled, n) for n in (3, 4, 5)][-1]
print("5 by str():", got)
assert got == "five"
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
