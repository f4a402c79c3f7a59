#!/usr/bin/env bash
# The values of transformers' table of models cannot be listed: one entry names a class that its module does not export.
#
# Expected: MODEL_MAPPING, which maps configuration classes to model classes, is a dict whose values() and items() give
# all models, as keys() gives all configurations; an auto model can be made from each of them.
# Seen in transformers 5.23.0: the table is a dict with nothing in it that looks up a name and imports a module for each
# entry when it is asked. The entry of VoxtralRealtimeTextConfig names VoxtralRealtimeTextModel, which exists nowhere, so
# that values() and items() raise for everybody, and AutoModel.from_config() of that configuration too. Who walks over
# objects in general (a watcher, a serializer, a debugger) meets the error in a model that has nothing to do with it, as
# the library's own functions name the table. dict.values(MODEL_MAPPING) is empty.
# What to do: look up single configurations, with `in` before; walk over keys() alone.
#
# Output:
#     as a plain dict: 0 entries
#     keys: hundreds, as many as len() says
#     values() raises ValueError, items() raises ValueError
#     entries that name nothing: ['VoxtralRealtimeTextConfig']
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'transformers==5.23.0'

cat >"$dir/probe.py" <<'PY'
from transformers.models.auto.modeling_auto import MODEL_MAPPING

print("as a plain dict:", dict.__len__(MODEL_MAPPING), "entries")
keys = MODEL_MAPPING.keys()
assert len(keys) == len(MODEL_MAPPING) > 100
print("keys: hundreds, as many as len() says")


def error(ask):
    try:
        ask()
    except Exception as raised:
        return type(raised).__name__
    return None


asked = {name: error(getattr(MODEL_MAPPING, name)) for name in ("values", "items")}
print(", ".join(f"{name}() raises {raised}" for name, raised in asked.items()))
nothing = [key.__name__ for key in keys if error(lambda: MODEL_MAPPING[key])]
print("entries that name nothing:", nothing)
assert dict.__len__(MODEL_MAPPING) == 0
assert set(asked.values()) == {"ValueError"}
assert nothing == ["VoxtralRealtimeTextConfig"]
PY
"$dir/venv/bin/python" "$dir/probe.py" 2>/dev/null
