"""``generate()`` of GPT-2 and of encoder-decoders, tiny and random: the models' own tokens."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

transformers = pytest.importorskip("transformers")

WORDS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 99, "pad_token_id": 0}
STATIC = {"cache_implementation": "static", "max_new_tokens": 5}
WAYS = {
    "greedy": {"do_sample": False},  # the calls are those of sampling
    "beams": {"do_sample": False, "num_beams": 2},
}


def gpt2(layers):
    config = transformers.GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=64, **WORDS)
    return transformers.GPT2LMHeadModel(config)


def t5(layers):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": layers, "num_heads": 4}
    config = transformers.T5Config(**sizes, **WORDS, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def whisper(layers):
    halves = ("encoder", "decoder")
    sizes = {"layers": layers, "attention_heads": 4, "ffn_dim": 48}
    config = transformers.WhisperConfig(
        d_model=32,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=64,
        decoder_start_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **{f"{half}_{name}": size for half in halves for name, size in sizes.items()},
        **WORDS,
    )
    return transformers.WhisperForConditionalGeneration(config)


def inputs(kind, batch):
    made = torch.Generator().manual_seed(batch)
    if kind is whisper:
        return {"input_features": torch.randn(batch, 8, 32, generator=made)}
    ids = torch.randint(5, 90, (batch, 7), generator=made)
    mask = torch.ones_like(ids)
    if batch > 1:  # decoders are padded on the left
        mask[0, slice(-2, None) if kind is t5 else slice(2)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def built(kind, layers=1):
    """Of one layer where possible: nearly all time goes to traces, and each layer is traced."""
    torch.manual_seed(0)
    return kind(layers).eval()


def tokens(model, given, **settings):
    torch.manual_seed(7)
    return model.generate(**given, pad_token_id=0, **settings).tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [gpt2, t5, whisper])
def test_tokens_are_the_models_own_and_decode_steps_come_from_graphs(kind, way):
    model = built(kind, layers=2 if way == "greedy" else 1)
    fast = pw.compile(model, pw.Config(compiler="eager", graph_mode="full"), SimulatedPlatform())
    for batch in (1, 2, 2):
        given = inputs(kind, batch)
        wanted = tokens(model, given, max_new_tokens=5, **WAYS[way])
        assert tokens(fast, given, **STATIC, **WAYS[way]) == wanted
    calls = fast.stats().calls
    assert calls["eager"] < calls["compiled_range"] + calls["replayed"]
    if way != "beams":
        assert calls["replayed"] > 0


@pytest.mark.parametrize("kind", [gpt2, t5, whisper])
def test_generates_own_compile_setting_gives_the_models_own_tokens(kind, monkeypatch):
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    torch._dynamo.reset()
    model, before = built(kind), pw.counters.graphs
    for batch in (1, 2):
        settings = transformers.CompileConfig(backend="piecewise")
        settings._compile_all_devices = True  # else only where there is a GPU
        given = inputs(kind, batch)
        wanted = tokens(model, given, max_new_tokens=5, do_sample=False)
        got = tokens(model, given, compile_config=settings, do_sample=False, **STATIC)
        assert got == wanted
    assert pw.counters.graphs > before
