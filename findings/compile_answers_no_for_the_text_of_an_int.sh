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


def names(fn, n):
    return "five" if fn(torch.zeros(1), n).item() else "other"


compiled, plain = torch.compile(by_f_string, backend="eager", dynamic=True), by_f_string
for n in (3, 4, 5):
    got, wanted = names(compiled, n), names(plain, n)
    print(f"{n}: {got}" + (f", and by itself {wanted}" if got != wanted else ""))
compiled = torch.compile(by_str, backend="eager", dynamic=True)
print("5 by str():", [names(compiled, n) for n in (3, 4, 5)][-1])
PY

got=$("$dir/venv/bin/python" -W ignore "$dir/probe.py" 2>/dev/null)
want='3: other
4: other
5: other, and by itself five
5 by str(): five'
printf '%s\n' "$got"
[ "$got" = "$want" ] || { printf 'changed; it was:\n%s\n' "$want" >&2; exit 1; }
