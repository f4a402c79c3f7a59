#!/usr/bin/env bash
# UMT5's decoder looks into the future in eager mode, and does not when compiled.
#
# Expected: torch.compile changes no result, and a decoder's first place does not depend on its last.
# Seen in transformers 5.17.0 with torch 2.13.0, CPU; the same in 5.17.0 with torch 2.11.0 on CUDA: without padding,
# transformers leaves the causal mask out, for scaled_dot_product_attention has is_causal. UMT5 passes its position bias
# as the mask, so is_causal stays off, and nothing masks. While Dynamo traces the mask is always made. So the compiled
# model is right and eager is not; a comparison with eager blames the compiler. Doge in 5.17.0 does the same on CUDA.
# Not seen in 5.23.0.
# What to do: upgrade transformers, or pass attn_implementation="eager".
#
# Output:
#     eager: the first place depends on the last
#     compiled: the first place does not depend on the last
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'transformers==5.17.0'

cat >"$dir/probe.py" <<'PY'
import torch
from transformers import UMT5Config, UMT5Model

torch.manual_seed(0)
config = UMT5Config(
    vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
)
model = UMT5Model(config).eval()
ids = torch.tensor([[5, 6, 7]])
now, other = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 1, 2, 9]])


def first(call, decoder_ids):
    with torch.no_grad():
        result = call(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False)
    return result.last_hidden_state[0, 0]


seen = []
for name, call in (("eager", model), ("compiled", torch.compile(model, backend="eager"))):
    depends = not torch.allclose(first(call, now), first(call, other), atol=1e-5)
    print(f"{name}: the first place {'depends' if depends else 'does not depend'} on the last")
    seen.append(depends)
assert seen == [True, False]
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
