#!/usr/bin/env bash
# nn.TransformerEncoder gives zeros for padded places in eager, and other numbers as soon as anything looks on.
#
# Expected: with src_key_padding_mask, what comes out at padded places is the same however the encoder is run.
# Seen in torch 2.13.0, CPU; older versions not tried: in eval mode without gradients it takes the sequences apart
# (enable_nested_tensor is True by default) and fills padded places with zeros. Under torch.compile, or inside any
# TorchFunctionMode (one that changes nothing: a logger, a tracer), it does not, and they hold what attention gives
# there. With gradients on they do too. So a mean over all places, padded ones included, has one value in eager serving
# and another when compiled.
# What to do: TransformerEncoder(..., enable_nested_tensor=False), or mask the result before places are summed.
#
# Output:
#     eager     padded places are zero: True
#     compiled  padded places are zero: False
#     a mode    padded places are zero: False
#     switched off, eager: padded places are zero: False
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0'

cat >"$dir/probe.py" <<'PY'
import warnings

import torch
from torch.overrides import TorchFunctionMode

warnings.simplefilter("ignore")
torch.manual_seed(0)


class Looks(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def encoder(**settings):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 1, **settings).eval()


x = torch.randn(2, 4, 8)
padding = torch.arange(4).expand(2, 4) > 2
model = encoder()
seen = []
with torch.no_grad():
    runs = {"eager": model, "compiled": torch.compile(model, backend="eager")}
    results = {name: run(x, src_key_padding_mask=padding) for name, run in runs.items()}
    with Looks():
        results["a mode"] = model(x, src_key_padding_mask=padding)
    for name, result in results.items():
        torch.testing.assert_close(result[:, :3], results["eager"][:, :3])
        seen.append(bool((result[:, 3] == 0).all()))
        print(name.ljust(9), "padded places are zero:", seen[-1])
    off = encoder(enable_nested_tensor=False)(x, src_key_padding_mask=padding)
    seen.append(bool((off[:, 3] == 0).all()))
    print("switched off, eager: padded places are zero:", seen[-1])
assert seen == [True, False, False, False]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
