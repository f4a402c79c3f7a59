#!/usr/bin/env bash
# torch.compile(model).generate(...) runs a transformers model uncompiled.
#
# Expected: the compiled model's generate() calls the compiled forward.
# Seen in transformers 5.23.0 with torch 2.13.0, CPU; older versions not tried: torch.compile(model) compiles calls of
# the object that it returns. Any other method is the original model's, and what generate() calls is the original too.
# Nothing is compiled, nothing warns, numbers are right, and there is no speed. encode(), predict() and the like of
# other libraries are methods alike.
# What to do: `model.compile(...)`, which compiles the model's own calls, also those of generate().
#
# Output (graphs that were compiled):
#     torch.compile(model).generate 0
#     torch.compile(model)(ids) 1
#     model.compile(); model.generate 1 or more
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'transformers==5.23.0'

cat >"$dir/probe.py" <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

graphs = []


def backend(graph, examples):
    graphs.append(graph)
    return graph.forward


def compiled_by(call):
    torch.compiler.reset()
    graphs.clear()
    with torch.no_grad():
        call()
    return len(graphs)


def tiny():
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=32, **sizes)).eval()


def generate(model):
    result = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert result.shape == (1, 9)


ids = torch.arange(6)[None]
wrapped = torch.compile(tiny(), backend=backend)
in_place = tiny()
in_place.compile(backend=backend)
by_generate = compiled_by(lambda: generate(wrapped))
by_call = compiled_by(lambda: wrapped(ids, use_cache=False))
by_compile = compiled_by(lambda: generate(in_place))
print("torch.compile(model).generate", by_generate)
print("torch.compile(model)(ids)", by_call)
print("model.compile(); model.generate", by_compile)
assert by_generate == 0 and by_call >= 1 and by_compile >= 1
PY
env -i PATH="$PATH" HOME="$dir" "$dir/venv/bin/python" -I "$dir/probe.py"
