#!/usr/bin/env bash
# torch.get_float32_matmul_precision() raises once a backend's fp32_precision was set, by whomever.
#
# Expected: after torch.backends.cuda.matmul.fp32_precision = "tf32", the interface that torch recommends, the older
# question answers "high"; the other way around, each answers what the other has set.
# Seen in torch 2.13.0, CPU build, and no GPU needed; older versions not tried: the question raises RuntimeError, which
# says that old and new were mixed though only the new one was used to set anything. So does reading
# torch.backends.cuda.matmul.allow_tf32. A library that only reads either (to warn, to restore it later, as a key of a
# cache) fails far from the line that set it, and it needs no GPU to: the mkldnn backend does it too.
# What to do: read the backend's own fp32_precision, which never raises; where both are met, catch RuntimeError.
# Whoever sets with torch.set_float32_matmul_precision() can read both, and makes both readable again.
#
# Output:
#     as it begins                get highest        allow_tf32 False
#     cuda.matmul = tf32          get RuntimeError   allow_tf32 RuntimeError
#     set_float32_... "highest"   get highest        allow_tf32 False
#     mkldnn.matmul = bf16        get RuntimeError   allow_tf32 False
#     set_float32_... "high"      get high           allow_tf32 True
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import torch

cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def answer(question):
    try:
        return str(question())
    except RuntimeError as error:
        assert "mix of the legacy and new APIs" in str(error), error
        return "RuntimeError"


def look(after):
    found = answer(torch.get_float32_matmul_precision), answer(lambda: cuda.allow_tf32)
    print(f"{after:27} get {found[0]:14} allow_tf32 {found[1]}")
    return found


seen = [look("as it begins")]
cuda.fp32_precision = "tf32"
seen.append(look("cuda.matmul = tf32"))
torch.set_float32_matmul_precision("highest")
seen.append(look('set_float32_... "highest"'))
mkldnn.fp32_precision = "bf16"
seen.append(look("mkldnn.matmul = bf16"))
torch.set_float32_matmul_precision("high")
seen.append(look('set_float32_... "high"'))
assert seen == [
    ("highest", "False"),
    ("RuntimeError", "RuntimeError"),
    ("highest", "False"),
    ("RuntimeError", "False"),
    ("high", "True"),
]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
