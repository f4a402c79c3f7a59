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


@pytest.mark.parametrize(
    ("kind", "way", "layers"),
    [
        *((gpt2, "greedy", 1), (t5, "greedy", 2), (whisper, "greedy", 1), (t5, "beams", 1)),
        pytest.param(gpt2, "greedy", 2, marks=pytest.mark.slow),
        pytest.param(whisper, "greedy", 2, marks=pytest.mark.slow),
        pytest.param(gpt2, "beams", 1, marks=pytest.mark.slow),
        pytest.param(whisper, "beams", 1, marks=pytest.mark.slow),
    ],
)
def test_tokens_are_the_models_own_and_decode_steps_come_from_graphs(kind, way, layers):
    """The beams of a decoder, and the caches of two layers of one: see `test_generate`."""
    model = built(kind, layers)
    fast = pw.compile(model, pw.Config(compiler="eager", graph_mode="full"), SimulatedPlatform())
    for batch in (1, 2, 2):
        given = inputs(kind, batch)
        wanted = tokens(model, given, max_new_tokens=5, **WAYS[way])
        assert tokens(fast, given, **STATIC, **WAYS[way]) == wanted
    calls = fast.stats().calls
    assert calls["eager"] < calls["compiled_range"] + calls["replayed"]
    if way != "beams":
        assert calls["replayed"] > 0


@pytest.mark.parametrize(
    "kind", [t5, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (gpt2, whisper))]
)
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


def sliding(kind, layers=2, window=8):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "num_hidden_layers": layers, "sliding_window": window}
    kinds = ["sliding_attention", "full_attention"][:layers]
    settings, made = {
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "gemma": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }[kind]
    torch.manual_seed(0)
    return made(
        settings(
            **sizes, **WORDS, **({"layer_types": kinds, "head_dim": 8} if kind == "gemma" else {})
        )
    ).eval()


def prompts(batch, length):
    ids = torch.randint(5, 90, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[0, :2] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *(("mistral", "sampling"), ("gemma", "beams")),
        pytest.param("gemma", "greedy", marks=pytest.mark.slow),
    ],
)
def test_windows_become_full_at_their_step_and_each_side_has_one_trace(kind, way):
    """In caches of these models Python ints count; some prompts are longer than the window."""
    model = sliding(kind)
    fast = pw.compile(model, pw.Config(compiler="eager", graph_mode="full"), SimulatedPlatform())
    keep = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 6}
    ways = {**WAYS, "sampling": {"do_sample": True, "top_k": 5}}
    settings = {**keep, **ways[way], "pad_token_id": 0}
    steps = {"cache_implementation": "static", "max_cache_len": 20}
    for batch, length in ((2, 5), (2, 12), (2, 5)):
        given = prompts(batch, length)
        torch.manual_seed(7)
        wanted = model.generate(**given, **settings)
        torch.manual_seed(7)
        got = fast.generate(**given, **settings, **steps)
        assert got.sequences.tolist() == wanted.sequences.tolist()
        torch.testing.assert_close(got.logits, wanted.logits)
    stats = fast.stats()
    served = stats.calls["compiled_range"] + stats.calls["replayed"]
    assert (stats.calls["eager"], served, stats.graphs, stats.retraces) == (3, 15, 2, 0)
    if way != "beams":
        assert stats.calls["replayed"] == 15


def test_a_kept_cache_with_windows_has_its_prefill_compiled_too():
    model, length = sliding("gemma", layers=1), pw.Dim("length", max=64)
    names = ("input_ids", "position_ids")
    masks = ("attention_mask.sliding_attention", "attention_mask.full_attention")
    dims = {name: {1: length} for name in names} | {mask: {2: length} for mask in masks}
    fast = pw.compile(model, pw.Config(compiler="eager", dynamic=dims))
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
    for size in (5, 7, 3):
        cache.reset()
        given = prompts(1, size)
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        wanted = tokens(model, given, **settings)
        got = tokens(fast, given, **settings, past_key_values=cache)
        assert got == wanted
        assert cache.layers[0].cumulative_length_int == size + 5
    calls = fast.stats().calls
    assert (calls["eager"], calls["compiled_range"]) == (0, 18)


def test_masks_that_a_forward_makes_of_a_count_are_those_of_the_call():
    model = sliding("mistral", layers=1)
    fast = pw.compile(model, pw.Config(compiler="eager"))
    caches = [transformers.StaticCache(config=model.config, max_cache_len=20) for _ in range(2)]
    with torch.no_grad():
        for step in range(11):
            ids, at = torch.tensor([[5 + step]]), torch.tensor([[step]])
            given = zip((fast, model), caches, strict=True)
            got, wanted = (
                forward(input_ids=ids, position_ids=at, past_key_values=cache).logits
                for forward, cache in given
            )
            torch.testing.assert_close(got, wanted)
