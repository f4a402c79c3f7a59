"""Attention's real layout on a GPU is learned, and unmodified models cut at it are as eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import piecewise_core as pw

SDPA = "torch.nn.functional.scaled_dot_product_attention"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TEXT = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
}
IMAGE = {**TEXT, "image_size": 32, "patch_size": 8}
MODELS: dict[str, Any] = {
    "ViT": ("ViTModel", "ViTConfig", IMAGE),
    "DeiT": ("DeiTModel", "DeiTConfig", IMAGE),
    "DINOv2": ("Dinov2Model", "Dinov2Config", IMAGE),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", IMAGE),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", IMAGE),
    "BERT": ("BertModel", "BertConfig", {**TEXT, "vocab_size": 60}),
    "Llama": ("LlamaModel", "LlamaConfig", {**TEXT, "vocab_size": 60, "num_key_value_heads": 2}),
}


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    got, want = got.float(), want.float()
    bound = 2e-2 if want.norm() else 0
    assert (got - want).norm() <= bound * want.norm()


@pytest.mark.parametrize("sizes", [(), (2,)], ids=["uncaptured", "captured"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_an_unmodified_model_without_a_mask_is_as_eager(name, dtype, sizes):
    transformers = pytest.importorskip("transformers")
    kind, config, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    model = model.to("cuda", DTYPES[dtype])
    batch = pw.Dim("batch", min=1, max=4)
    key = "input_ids" if name in ("BERT", "Llama") else "pixel_values"
    fast = pw.compile(
        model,
        pw.Config(
            dynamic={key: {0: batch}},
            splitting_ops=(SDPA,),
            capture_sizes=sizes,
            capture_max=False,
        ),
        platform="cuda",
    )

    def call(rows: int) -> dict[str, Any]:
        if key == "pixel_values":
            pixels = torch.randn(rows, 3, 32, 32, device="cuda", dtype=DTYPES[dtype])
            return {key: pixels}
        return {key: torch.randint(2, 50, (rows, 9), device="cuda"), **more}

    more = {"use_cache": False} if name == "Llama" else {}
    with torch.inference_mode():
        for rows in (2, 1, 2, 4):
            given = call(rows)
            close(fast(**given)[0], model(**given)[0])
    assert fast.stats().relaid == 0, "the real layout was learned beforehand"


@pytest.mark.parametrize("sizes", [(), (2,)], ids=["uncaptured", "captured"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_any_kernel_and_query_layout_is_as_eager(dtype, turned, masked, sizes):
    def model(x):
        if turned:
            q, k, v = x.view(x.shape[0], 16, 3, 4, 32).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = x.view(x.shape[0], 3, 4, 16, 32).unbind(1)
        mask = (x[:, :16, :16] > -5)[:, None] if masked else None
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).reshape(x.shape[0], 16, -1).sin() + 1, y * 2

    fast = pw.compile(
        model,
        pw.Config(
            dynamic={"x": {0: pw.Dim("batch", min=1, max=4)}},
            splitting_ops=(SDPA,),
            capture_sizes=sizes,
            capture_max=False,
        ),
        platform="cuda",
    )
    with torch.inference_mode():
        for rows in (2, 1, 2, 3):
            x = torch.randn(rows, 16, 384, device="cuda", dtype=DTYPES[dtype])
            for got, want in zip(fast(x), model(x), strict=True):
                close(got, want)
