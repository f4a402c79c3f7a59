#!/usr/bin/env bash
# generate(compile_config=CompileConfig(options=...)) hands torch.compile a deep copy of the options.
#
# Expected: what stands in options reaches the backend as it is, as torch.compile(options=...) passes it.
# Seen in transformers 5.23.0 with torch 2.13.0, CPU; older versions not tried: CompileConfig.to_dict() copies deeply, and
# generate() compiles with what that gives. An object in options, a handle of a device say, is another object in the
# backend; one that cannot be copied, such as whatever holds a thread's locals, is a TypeError that names neither
# options nor the backend.
# What to do: give names or numbers in options and look the object up in the backend, or give it a __deepcopy__ that
# returns itself.
# On a CPU generate() compiles only with a private setting of CompileConfig, which the probe sets to see it here.
#
# Output:
#     torch.compile: the object itself
#     generate(): a copy
#     generate(), an object that cannot be copied: TypeError: cannot pickle '_thread._local' object
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'transformers==5.23.0'

cat >"$dir/probe.py" <<'PY'
import threading

import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

seen = []


def backend(graph, examples, *, options=None):
    seen.append(options["handle"])
    return graph.forward


def generated(handle):
    torch.compiler.reset()
    seen.clear()
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=32, **sizes)).eval()
    setting = CompileConfig(backend=backend, mode=None, options={"handle": handle})
    setting._compile_all_devices = True
    model.generate(
        torch.arange(6)[None],
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
        cache_implementation="static",
        compile_config=setting,
    )


def what(handle):
    return "the object itself" if all(one is handle for one in seen) else "a copy"


class Handle:
    pass


mine = Handle()
torch.compile(lambda x: x + 1, backend=backend, options={"handle": mine})(torch.ones(2))
direct = what(mine)
generated(mine)
through = what(mine)
try:
    generated(threading.local())
    failed = "nothing is raised"
except TypeError as error:
    failed = f"TypeError: {error}"
print("torch.compile:", direct)
print("generate():", through)
print("generate(), an object that cannot be copied:", failed)
assert direct == "the object itself"
assert through == "a copy"
assert failed == "TypeError: cannot pickle '_thread._local' object"
PY
env -i PATH="$PATH" HOME="$dir" HF_HUB_OFFLINE=1 "$dir/venv/bin/python" -I "$dir/probe.py"
