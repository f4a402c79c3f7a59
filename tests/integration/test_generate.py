"""``generate()`` of transformers on a compiled model: the tokens are those of the model itself."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import piecewise_core as pw
from piecewise_core.frontend.successors import held_by
from piecewise_core.testing import SimulatedPlatform

transformers = pytest.importorskip("transformers")

STATIC = {"cache_implementation": "static"}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}


def llama(layers):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=100,
        bos_token_id=1,
        eos_token_id=99,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    """Of one layer: nearly all time goes to traces, and they take twice as long for two."""
    return llama(1)


@pytest.fixture(scope="module")
def deep():
    """Of two, whose caches must not be taken for each other's."""
    return llama(2)


def compiled(model, platform="cpu", **config):
    return pw.compile(model, pw.Config(compiler="eager", **config), platform)


def prompt(batch=1, length=7, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randint(5, 90, (batch, length), generator=made)


def same_tokens(fast, model, ids, **settings):
    torch.manual_seed(7)
    wanted = model.generate(ids, **settings)
    torch.manual_seed(7)
    got = fast.generate(ids, **settings)
    assert got.tolist() == wanted.tolist()
    return got


def test_the_decode_step_is_compiled_once_whatever_caches_generations_make(deep):
    fast = compiled(deep)
    for seed in range(4):
        same_tokens(fast, deep, prompt(seed=seed), **GREEDY, **STATIC)
    calls = fast.stats().calls
    # The first call with a cache fills it, as written; the others are decode steps.
    assert (calls["eager"], calls["compiled_range"]) == (4, 20)
    assert fast.stats().graphs == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"do_sample": True, "top_k": 5},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_way_of_choosing_tokens_gives_the_models_own(model, settings):
    fast = compiled(model)
    for seed in range(2):
        same_tokens(fast, model, prompt(2, seed=seed), **{**GREEDY, **STATIC, **settings})
    assert fast.stats().calls["compiled_range"] > 0
    assert fast.stats().graphs == 1


def test_batches_padded_on_the_left_get_the_models_own_tokens(model):
    fast = compiled(model)
    for pads in (3, 1):
        ids = prompt(3)
        mask = torch.ones_like(ids)
        mask[0, :pads], ids[0, :pads] = 0, 0
        same_tokens(fast, model, ids, attention_mask=mask, **GREEDY, **STATIC)
    assert fast.stats().calls["compiled_range"] == 10


def test_prompts_and_batches_of_any_size_are_served(model):
    fast = compiled(model)
    for batch, length in ((1, 7), (2, 3), (1, 12), (1, 1), (1, 7)):
        same_tokens(fast, model, prompt(batch, length), **GREEDY, **STATIC)
    assert fast.stats().calls["compiled_range"] == 5 * 5


def test_with_named_dims_prompts_are_served_by_one_trace_each_way(model):
    length = pw.Dim("length", max=64)
    fast = compiled(model, dynamic={"input_ids": {1: length}, "position_ids": {1: length}})
    for seed, tokens in enumerate((7, 5, 9)):
        same_tokens(fast, model, prompt(2, tokens, seed), **GREEDY, max_cache_len=32, **STATIC)
    assert fast.stats().calls["compiled_range"] == 15


def test_a_growing_cache_is_served_as_written_and_said_once(model, caplog):
    fast = compiled(model)
    for seed in range(2):
        same_tokens(fast, model, prompt(seed=seed), **GREEDY)
    assert fast.stats().calls["eager"] == 12
    said = [
        r.message
        for r in caplog.records
        if "DynamicCache" in r.message and r.levelname == "WARNING"
    ]
    assert len(said) <= 1
    same_tokens(fast, model, prompt(), **GREEDY, **STATIC)
    assert fast.stats().calls["compiled_range"] == 5


def test_assisted_decoding_gives_the_models_own_tokens(model):
    fast = compiled(model)
    same_tokens(fast, model, prompt(), assistant_model=model, **GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same_tokens(model, fast, prompt(), assistant_model=fast, **GREEDY)


def test_decode_steps_are_replayed_from_graphs(deep):
    fast = compiled(deep, SimulatedPlatform(), graph_mode="full")
    for seed in range(3):
        same_tokens(fast, deep, prompt(seed=seed), **GREEDY, **STATIC)
    assert fast.stats().calls["replayed"] > 0


def test_what_a_generation_keeps_of_its_steps_is_not_overwritten(deep):
    fast = compiled(deep, SimulatedPlatform(), graph_mode="full")
    keep = {"return_dict_in_generate": True, "output_hidden_states": True}
    for seed in range(2):
        ids = prompt(seed=seed)
        wanted = deep.generate(ids, **GREEDY, **keep).hidden_states
        got = fast.generate(ids, **GREEDY, **STATIC, **keep).hidden_states
        torch.testing.assert_close(got, wanted)
    assert fast.stats().calls["replayed"] > 0


def test_guidance_makes_a_cache_of_its_own_and_the_other_steps_have_graphs(model):
    fast = compiled(model, SimulatedPlatform(), graph_mode="full")
    guided = {"guidance_scale": 1.5}
    for seed in range(2):
        same_tokens(fast, model, prompt(2, 7 + seed, seed), **GREEDY, **STATIC, **guided)
    calls = fast.stats().calls
    assert (calls["eager"], calls["replayed"]) == (2 + 12, 10)
    assert "past_key_values is a" in " ".join(str(fast.explain()).split())
    with torch.no_grad(), pytest.raises(pw.errors.UnsupportedOutput, match="DynamicCache"):
        fast(prompt())


def test_sizes_that_a_generation_chooses_need_no_name(model):
    fast = compiled(model)
    same_tokens(fast, model, prompt(), use_cache=False, **GREEDY)
    assert fast.stats().calls["eager"] == 5


def test_where_graphs_are_not_used_explain_says_why(model):
    assert "nothing asks for static graphs" in str(compiled(model).explain())
    fast = compiled(model, SimulatedPlatform(), graph_mode="full")
    same_tokens(fast, model, prompt(), num_beams=2, **GREEDY, **STATIC)
    told = " ".join(str(fast.explain()).split())
    assert "1 call: the first call with a new StaticCache fills it, as a prefill does" in told
    assert "a tensor that the graphs read was replaced or moved, as beam search moves a" in told
    same_tokens(fast, model, prompt(), **GREEDY)
    told = " ".join(str(fast.explain()).split())
    assert "5 calls: every call with a DynamicCache changes it" in told
    assert "as beam search moves a cache's" in str(fast.status())


def test_after_a_beam_search_the_next_cache_has_graphs_again(deep):
    fast = compiled(deep, SimulatedPlatform(), graph_mode="full")
    beams = {"num_beams": 2}

    def replayed(batch, **settings):
        before = fast.stats().calls["replayed"]
        same_tokens(fast, deep, prompt(batch), **{**GREEDY, **STATIC, **settings})
        return fast.stats().calls["replayed"] - before

    found = [replayed(1, **beams), replayed(2), replayed(1, **beams), replayed(2)]
    assert found == [1, 5, 1, 5]
    assert [replayed(1, **beams) for _ in range(5)] == [1, 1, 1, 0, 0]


def test_a_compiled_model_is_not_compiled_again_by_generate(model):
    fast, settings = compiled(model), transformers.CompileConfig(backend="eager")
    settings._compile_all_devices = True  # else only where there is a GPU
    ids = prompt()
    got = fast.generate(ids, compile_config=settings, **GREEDY, **STATIC)
    assert got.tolist() == model.generate(ids, **GREEDY).tolist()
    assert fast.stats().calls["compiled_range"] == 5
    assert fast.get_compiled_call(settings) == fast.__call__


def test_two_caches_taken_in_turns_give_right_numbers(deep):
    fast = compiled(deep)

    def cache():
        made = transformers.StaticCache(config=deep.config, max_cache_len=16)
        made.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
        return made

    def steps(forward):
        caches, found = (cache(), cache()), []
        for place in range(4):
            for which, held in enumerate(caches):
                ids = torch.tensor([[10 + 7 * place + which]])
                at = torch.tensor([place])
                out = forward(input_ids=ids, past_key_values=held, position_ids=at[None])
                found.append(out.logits)
        return found

    with torch.no_grad():
        for got, wanted in zip(steps(fast), steps(deep), strict=True):
            torch.testing.assert_close(got, wanted)
    assert fast.stats().graphs == 1


@pytest.mark.parametrize("mode", ["full", "piecewise"])
def test_graphs_of_a_cache_serve_the_next_one_in_its_memory_and_keep_none(model, mode):
    fast, memory = compiled(model, graph_mode=mode), {}

    def cache(name):
        made = transformers.StaticCache(config=model.config, max_cache_len=16)
        made.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
        for which, layer in enumerate(made.layers):
            for each in ("keys", "values", "cumulative_length"):
                mine = memory.setdefault((name, which, each), getattr(layer, each).clone())
                setattr(layer, each, mine.detach().zero_())
        return made

    def turns(names):
        for seed, name in enumerate(names):
            wanted = model.generate(prompt(seed=seed), **GREEDY)
            got = fast.generate(prompt(seed=seed), past_key_values=cache(name), **GREEDY)
            assert got.tolist() == wanted.tolist()
        return fast.stats().captures

    before = turns("abab")
    assert turns("babaab") == before > 0
    kept = StorageWeakRef(memory["a", 0, "keys"].untyped_storage())
    turns("b")
    memory = {key: held for key, held in memory.items() if key[0] == "b"}
    assert kept.expired()
    assert turns("cb") > before  # memory elsewhere has graphs of its own


@pytest.mark.parametrize("mode", ["none", "full", "piecewise"])
def test_a_cache_that_generate_made_goes_with_its_end(model, mode):
    fast = compiled(model, graph_mode=mode)

    def layers():
        return sum(type(each) is transformers.cache_utils.StaticLayer for each in gc.get_objects())

    same_tokens(fast, model, prompt(), **GREEDY, **STATIC)
    gc.collect()
    before = layers()
    gc.disable()  # nothing lies on circles
    try:
        for seed in range(2):
            same_tokens(fast, model, prompt(seed=seed), **GREEDY, **STATIC)
            assert layers() == before
    finally:
        gc.enable()
    # What asks of the model finds nothing to capture or to measure, and breaks nothing.
    assert str(fast.explain(measure=True))
    assert not fast.warmup(progress=False).captured
    fast.release()
    fast.restore()
    same_tokens(fast, model, prompt(seed=3), **GREEDY, **STATIC)
    fast.seal()
    same_tokens(fast, model, prompt(seed=4), **GREEDY, **STATIC)


def test_a_method_waits_for_no_call_of_another_thread(model):
    fast = compiled(model)
    same_tokens(fast, model, prompt(), **GREEDY, **STATIC)
    done = threading.Event()

    def asks():
        assert fast.get_input_embeddings() is model.get_input_embeddings()
        done.set()

    with fast._pw_session.lock:  # as a call that compiles, in a hook, has it
        thread = threading.Thread(target=asks)
        thread.start()
        assert done.wait(30)
    thread.join()
    same_tokens(fast, model, prompt(), **GREEDY, **STATIC)


def test_what_a_method_is_given_may_hold_itself():
    ring, inner = [], object()
    ring += [ring, {"inner": (inner,)}]
    assert {id(ring), id(inner)} <= held_by(ring)


def test_a_cache_that_the_user_has_stays_in_place(model):
    fast = compiled(model, graph_mode="full")
    kept = transformers.StaticCache(config=model.config, max_cache_len=16)
    kept.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
    for seed in range(4):
        kept.reset()
        wanted = model.generate(prompt(seed=seed), **GREEDY)
        assert (
            fast.generate(prompt(seed=seed), past_key_values=kept, **GREEDY).tolist()
            == wanted.tolist()
        )
    captured = fast.stats().captures
    settings = {**GREEDY, **STATIC, "max_cache_len": 16, "return_dict_in_generate": True}
    result = fast.generate(prompt(), **settings)
    longer = torch.cat([result.sequences, prompt(seed=9)[:, :1]], 1)
    assert result.past_key_values.get_seq_length() == 12
    with torch.no_grad():
        step = {"past_key_values": result.past_key_values, "position_ids": torch.tensor([[12]])}
        got = fast(input_ids=longer[:, -2:-1], **step).logits
        wanted = model(longer[:, :-1], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert fast.stats().captures <= captured + 2


def test_generates_own_compile_setting_takes_the_backends_name(model):
    """What transformers passes: mode="reduce-overhead", dynamic=None; it compiles decode steps."""
    before = pw.counters.graphs
    for seed in range(2):
        settings = transformers.CompileConfig(backend="piecewise")
        settings._compile_all_devices = True  # else only where there is a GPU
        got = model.generate(prompt(seed=seed), compile_config=settings, **GREEDY, **STATIC)
        assert got.tolist() == model.generate(prompt(seed=seed), **GREEDY).tolist()
    assert pw.counters.graphs > before


def own_cache(model, batch, length=32):
    made = transformers.StaticCache(config=model.config, max_cache_len=length)
    made.early_initialization(batch, 2, 8, torch.float32, torch.device("cpu"))
    return made


def test_a_cache_that_is_kept_has_prefill_and_decode_compiled_and_replayed(deep):
    length = pw.Dim("length", max=64)
    dims = {"input_ids": {1: length}, "position_ids": {1: length}}
    settings = {"graph_mode": "full", "capture": "lazy", "capture_sizes": [1, 5, 9]}
    fast = compiled(deep, SimulatedPlatform(), dynamic=dims, **settings)
    cache = own_cache(deep, 2)
    for seed, tokens in enumerate((7, 5, 9, 9)):
        cache.reset()
        wanted = deep.generate(prompt(2, tokens, seed), **GREEDY)
        got = fast.generate(prompt(2, tokens, seed), past_key_values=cache, **GREEDY)
        assert got.tolist() == wanted.tolist()
    calls = fast.stats().calls
    assert (calls["eager"], calls["compiled_range"] + calls["replayed"]) == (0, 24)
    assert calls["replayed"] >= 18


def test_a_named_batch_is_served_with_caches_of_each_batch(model):
    batch, length = pw.Dim("batch", max=8), pw.Dim("length", max=64)
    dims = {0: batch, 1: length}
    fast = compiled(model, dynamic={"input_ids": dims, "position_ids": dims})
    for rows, tokens in ((2, 7), (3, 5), (2, 9)):
        same_tokens(fast, model, prompt(rows, tokens), max_cache_len=32, **GREEDY, **STATIC)
    assert fast.stats().calls["compiled_range"] == 15


@pytest.mark.parametrize("named", [False, True], ids=["", "named"])
def test_a_cache_made_for_another_batch_is_refused_by_name(model, named):
    fast = compiled(model, dynamic={"input_ids": {0: pw.Dim("batch", max=8)}} if named else {})
    caches = {rows: own_cache(model, rows) for rows in (2, 3)}
    said = r'argument "past_key_values" \(StaticCache\) holds tensors for a batch of 2'
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(pw.errors.PiecewiseError, match=said):
                fast(input_ids=prompt(3, 1), past_key_values=caches[2])
            caches[3].reset()
            got = fast(input_ids=prompt(3, 1), past_key_values=caches[3]).logits
            wanted = model(input_ids=prompt(3, 1), past_key_values=own_cache(model, 3)).logits
            torch.testing.assert_close(got, wanted)
        caches[2].reset()
        made = own_cache(model, 2)  # runs as written, at its first call
        with pytest.raises(pw.errors.PiecewiseError, match=said):
            fast(input_ids=prompt(3, 1), past_key_values=made)


def test_another_cache_after_seal_is_served_and_one_of_another_length_refused_by_name(model):
    fast = compiled(model)
    same_tokens(fast, model, prompt(), max_cache_len=32, **GREEDY, **STATIC)
    fast.seal()
    same_tokens(fast, model, prompt(1, 9, seed=1), max_cache_len=32, **GREEDY, **STATIC)
    with pytest.raises(pw.errors.Sealed, match=r"another size of dim 3 too.*max_cache_len="):
        same_tokens(fast, model, prompt(), max_cache_len=40, **GREEDY, **STATIC)
