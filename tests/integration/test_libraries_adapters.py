"""Adapters of peft around compiled models: switched, swapped, and several in one batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
hotswap = pytest.importorskip("peft.utils.hotswap")

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def adapted(rank, seed=1):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, vocab_size=50, use_cache=False)
    model = transformers.LlamaModel(config).eval()
    torch.manual_seed(seed)
    lora = peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, lora).eval()


def settings(**more):
    dims = {"input_ids": {0: pw.Dim("batch", max=8), 1: pw.Dim("length", max=32)}}
    return pw.Config(dynamic=dims, compiler="eager", **more)


def states(model, ids, **more):
    return model(input_ids=ids, **more).last_hidden_state


def test_a_switched_scaled_merged_or_removed_adapter_is_noticed():
    model = adapted(4)
    fast = pw.compile(model.base_model.model, settings())
    ids = torch.randint(0, 50, (2, 7))
    seen = []

    def check():
        torch.testing.assert_close(states(fast, ids), states(model, ids))
        seen.append(states(fast, ids))

    check()
    model.add_adapter(
        "wide", peft.LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.set_adapter("wide")
    check()
    with model.disable_adapter():
        check()
    for part in model.modules():
        if isinstance(part, peft.tuners.lora.LoraLayer) and "wide" in part.lora_A:
            part.set_scale("wide", 0.25)
    check()
    model.merge_adapter()
    torch.testing.assert_close(states(fast, ids), seen[-1], rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.delete_adapter("wide")
    torch.testing.assert_close(states(fast, ids), seen[0], rtol=1e-4, atol=1e-5)
    assert not any(torch.allclose(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("room", "rank", "traces", "captured"),
    [(8, 8, 1, False), (8, 8, 1, True), (8, 2, 1, True), (None, 8, 2, False), (None, 8, 2, True)],
)
def test_a_hot_swapped_adapter_is_served_and_where_there_was_room_by_the_same_trace(
    room, rank, traces, captured, tmp_path
):
    model, other = adapted(4), adapted(rank, seed=2)
    other.save_pretrained(tmp_path)
    if room:
        given = {"target_rank": room, "config": model.peft_config["default"]}
        hotswap.prepare_model_for_compiled_hotswap(model, **given)
    sizes = {"capture_sizes": [(2, 7)], "capture_max": False} if captured else {}
    platform = SimulatedPlatform() if captured else None
    fast = pw.compile(model.base_model.model, settings(**sizes), platform=platform)
    ids = torch.randint(0, 50, (2, 7))
    for _ in range(2):
        torch.testing.assert_close(states(fast, ids), states(model, ids))
    hotswap.hotswap_adapter(model, str(tmp_path), adapter_name="default")
    for _ in range(2):
        torch.testing.assert_close(states(fast, ids), states(other, ids), rtol=1e-4, atol=1e-5)
    assert fast.stats().graphs == traces
    if captured:
        fast.restore()  # graphs of tensors that were replaced are not made again unasked
        before = fast.stats().calls["replayed"]
        assert before == (4 if traces == 1 else 2)
        torch.testing.assert_close(states(fast, ids), states(other, ids), rtol=1e-4, atol=1e-5)
        assert fast.stats().calls["replayed"] == before + 1


def test_a_batch_of_several_adapters_is_refused_by_the_argument_and_the_others_served_on():
    model = adapted(4)
    model.add_adapter(
        "wide", peft.LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False)
    )
    fast = pw.compile(model, settings())
    ids = torch.randint(0, 50, (3, 7))
    torch.testing.assert_close(states(fast, ids), states(model, ids))
    with pytest.raises(pw.errors.InputMismatch, match="adapter_names"):
        states(fast, ids, adapter_names=["default", "wide", "__base__"])
    torch.testing.assert_close(states(fast, ids), states(model, ids))
    assert fast.stats().graphs == 1


def test_after_seal_an_adapter_of_another_rank_is_refused_and_one_of_that_rank_served(tmp_path):
    model, ids = adapted(4), torch.randint(0, 50, (2, 7))
    fast = pw.compile(model.base_model.model, settings())
    states(fast, ids)
    fast.seal()
    for rank in (4, 8):
        adapted(rank, seed=2).save_pretrained(tmp_path / str(rank))
    hotswap.hotswap_adapter(model, str(tmp_path / "4"), adapter_name="default")
    torch.testing.assert_close(states(fast, ids), states(model, ids))
    hotswap.hotswap_adapter(model, str(tmp_path / "8"), adapter_name="default")
    with pytest.raises(pw.errors.Sealed, match="a parameter changed its dtype, device, shape"):
        states(fast, ids)
