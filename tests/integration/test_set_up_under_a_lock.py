"""What a first forward sets up under a lock, as transformers' collecting hooks: once as written."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from torch.utils._pytree import tree_leaves

import piecewise_core as pw
from piecewise_core.errors import UnsupportedSideEffect
from piecewise_core.testing import SimulatedPlatform

KINDS = [threading.Lock, threading.RLock, threading.Condition, threading.Semaphore]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class SetsUp(torch.nn.Module):
    """Hooks a layer under a lock, once or at ``every`` call; ``enters`` it or acquires it."""

    def __init__(self, lock, *, enters=True, every=False):
        super().__init__()
        self.lock, self.enters, self.every, self.ready = lock, enters, every, False
        self.layer, self.count = torch.nn.Identity(), 0
        self.register_buffer("calls", torch.zeros(()))

    def set_up(self):
        self.count += 1
        if not self.ready:
            self.layer.register_forward_hook(lambda module, args, output: output * 3)
        self.ready = True

    def forward(self, x):
        self.calls.add_(1)
        if not self.ready or self.every:
            if self.enters:
                with self.lock:
                    self.set_up()
            else:
                self.lock.acquire()
                self.set_up()
                self.lock.release()
        return self.layer(x)


def compiled(model, **settings):
    settings = {"dynamic": {"x": {0: pw.Dim("rows", 1, 32)}}, "compiler": "eager", **settings}
    return pw.compile(model, pw.Config(**settings), SimulatedPlatform())


@pytest.mark.parametrize("enters", [True, False], ids=["with", "acquire"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_set_up_by_one_call_as_written_and_traced_behind_that(kind, enters):
    model = SetsUp(kind(), enters=enters)
    fast = compiled(model, capture_sizes=(5,), capture_max=False)
    for rows in (5, 1, 5, 7):
        x = torch.randn(rows, 3)
        assert torch.equal(fast(x), x * 3)
    assert (model.count, int(model.calls)) == (1, 4)
    assert fast.stats().calls["eager"] == 1


def test_what_is_set_up_again_is_noticed():
    model, x = SetsUp(threading.Lock()), torch.ones(2, 3)
    fast = compiled(model)
    assert torch.equal(fast(x), x * 3)
    model.ready = False
    for _ in range(2):
        assert torch.equal(fast(x), x * 9)
    assert model.count == 2


def test_a_lock_taken_at_every_call_is_refused_by_line_and_tried_once():
    model = SetsUp(threading.Lock(), every=True)
    fast, line = compiled(model), SetsUp.forward.__code__.co_firstlineno + 4
    for _ in range(3):
        with pytest.raises(UnsupportedSideEffect, match=rf"a lock at .*_lock\.py:{line}, which"):
            fast(torch.ones(2, 3))
    assert (model.count, int(model.calls)) == (1, 0)


def test_warm_up_says_to_call_the_model_first():
    fast, x = compiled(SetsUp(threading.Lock())), torch.ones(2, 3)
    with pytest.raises(UnsupportedSideEffect, match=r"call the compiled model once before warmup"):
        fast.warmup(x, progress=False)
    fast(x)
    fast.warmup(x, progress=False)
    fast.seal()
    assert torch.equal(fast(x), x * 3)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "intermediate_size": 32, "vocab_size": 50}


def bert():
    return transformers.BertModel(transformers.BertConfig(**TEXT))


def llama():
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def vit():
    config = transformers.ViTConfig(**SIZES, intermediate_size=32, image_size=8, patch_size=4)
    return transformers.ViTModel(config)


def made(kind, dtype):
    torch.manual_seed(0)
    model = kind().eval().to(dtype)
    model.set_attn_implementation("eager")  # the only one that gives attention weights
    return model


def calls(kind, dtype):
    """Batches of images or padded texts; longer and longer texts, one at a time."""
    more = {"output_hidden_states": True, "output_attentions": True}
    for size in (5, 2, 5, 3):
        if kind is vit:
            yield {"pixel_values": torch.randn(size, 3, 8, 8, dtype=dtype), **more}
            continue
        batch, length = (size, 4) if kind is bert else (1, size)
        ids, mask = torch.randint(0, 50, (batch, length)), torch.ones(batch, length).long()
        mask[0, :1] = 0
        yield {"input_ids": ids, "attention_mask": mask, **({"use_cache": False} | more)}


def served(kind, model, how):
    if how == "door":
        torch._dynamo.reset()
        options = {"compiler": "eager"}
        return torch.compile(model, backend="piecewise", dynamic=True, options=options)
    names = ("pixel_values",) if kind is vit else ("input_ids", "attention_mask")
    dims = {1 if kind is llama else 0: pw.Dim("size", 2, 8)}
    config = pw.Config(
        dynamic=dict.fromkeys(names, dims), compiler="eager", capture_sizes=(5,), capture_max=False
    )
    return {"compiled": pw.compile, "recorded": pw.record}[how](model, config, SimulatedPlatform())


def leaves(output):
    return [each for each in tree_leaves(dict(output)) if each is not None]


HOW = [(kind, how) for kind in (bert, llama, vit) for how in ("compiled", "recorded")]


@pytest.mark.parametrize(
    ("kind", "how"), [*HOW, pytest.param(bert, "door", marks=pytest.mark.slow)]
)
def test_hidden_states_and_attentions_of_transformers_are_the_models_own(kind, how):
    dtype = torch.bfloat16 if kind is llama else torch.float32
    model, plain = made(kind, dtype), made(kind, dtype)
    fast = served(kind, model, how)
    for call in calls(kind, dtype):
        got, wanted = fast(**call), plain(**call)
        assert type(got) is type(wanted)
        assert list(got) == list(wanted)
        assert (len(wanted.hidden_states), len(wanted.attentions)) == (3, 2)
        torch.testing.assert_close(leaves(got), leaves(wanted))
    if how != "door":
        assert fast.stats().calls["replayed"] >= 1


class Held:
    """What a call brings: it grows, or is filled by its first forward."""

    def __init__(self):
        self.rows, self.filled = torch.zeros(0, 3), False


class Keeps(SetsUp):
    def __init__(self, *, grows):
        super().__init__(threading.Lock())
        self.grows = grows

    def forward(self, x, held):
        x = super().forward(x)
        if self.grows:
            held.rows = torch.cat([held.rows, x])
            return held.rows.sum(0)
        if not held.filled:
            held.filled = True
            return x + 1
        return x @ torch.ones(4, 4) if len(x) > 2 else x  # no longer of the first call's size


@pytest.mark.parametrize("grows", [True, False], ids=["grows", "filled"])
def test_a_first_call_that_changes_what_it_was_given_too_is_made_once(grows):
    model, plain = Keeps(grows=grows), Keeps(grows=grows)
    fast = pw.compile(model, pw.Config(compiler="eager"), SimulatedPlatform())
    given, own = Held(), Held()
    for x in (torch.ones(3, 3), torch.ones(2, 3), torch.ones(2, 3)):
        assert torch.equal(fast(x, given), plain(x, own))
    assert (model.count, int(model.calls)) == (1, 3)


def test_a_first_generation_may_ask_for_hidden_states():
    model, ids = made(llama, torch.float32), torch.tensor([[1, 2, 3]])
    keep = {"output_hidden_states": True, "return_dict_in_generate": True, "do_sample": False}
    fast = pw.compile(model, pw.Config(compiler="eager"))
    got = fast.generate(ids, **keep, max_new_tokens=2, pad_token_id=0)
    wanted = made(llama, torch.float32).generate(ids, **keep, max_new_tokens=2, pad_token_id=0)
    assert torch.equal(got.sequences, wanted.sequences)
    torch.testing.assert_close(got.hidden_states, wanted.hidden_states)
