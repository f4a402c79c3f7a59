"""Pipelines of diffusers with a compiled part, tiny and random: images, saving, adapters."""

from __future__ import annotations

import json

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")  # its own

ABSENT = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))


def network():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
    ).eval()


def pipeline():
    torch.manual_seed(0)
    made = diffusers.StableDiffusionPipeline(
        unet=network(),
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        requires_safety_checker=False,
        **ABSENT,
    )
    made.set_progress_bar_config(disable=True)
    return made


def compiled(model):
    dims = {"sample": {2: pw.Dim("height", max=64), 3: pw.Dim("width", max=64)}}
    config = pw.Config(dynamic=dims, compiler="eager", capture_sizes=[(16, 16)], capture_max=False)
    return pw.compile(model, config, platform=SimulatedPlatform())


def image(pipe, height, width):
    seed = torch.Generator().manual_seed(1)
    texts = torch.randn(2, 7, 32, generator=seed)
    call = {"prompt_embeds": texts[:1], "negative_prompt_embeds": texts[1:], "generator": seed}
    made = pipe(**call, height=height, width=width, num_inference_steps=2, output_type="latent")
    return made.images


def same(pipe, other, height=16, width=16):
    wanted = image(other, height, width)
    torch.testing.assert_close(image(pipe, height, width), wanted, rtol=1e-4, atol=1e-4)
    return wanted


def test_a_pipeline_with_a_compiled_network_gives_its_images_and_saves_under_its_own_names(
    tmp_path,
):
    pipe, plain = pipeline(), pipeline()
    pipe.unet = fast = compiled(pipe.unet)
    for size in ((16, 16), (8, 24)):
        same(pipe, plain, *size)
    assert (fast.stats().graphs, fast.stats().calls["replayed"]) == (1, 2)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    load = diffusers.StableDiffusionPipeline.from_pretrained
    read = load(tmp_path, image_encoder=None, **ABSENT)
    assert not isinstance(read.unet, pw.CompiledModule)
    assert read.unet.config["cross_attention_dim"] == fast.config["cross_attention_dim"] == 32
    with_part = load(tmp_path, unet=fast, image_encoder=None, **ABSENT)
    for other in (read, with_part):
        other.set_progress_bar_config(disable=True)
        same(other, plain)
    assert fast.stats().calls["replayed"] == 4


def test_adapters_loaded_by_a_pipeline_reach_its_compiled_network_and_hot_swaps_trace_nothing(
    tmp_path,
):
    for name, rank in (("first", 4), ("second", 8)):
        torch.manual_seed(rank)
        made = network()
        targets = ["to_q", "to_v"]
        lora = peft.LoraConfig(r=rank, target_modules=targets, init_lora_weights=False)
        made.add_adapter(lora)
        state = peft.get_peft_model_state_dict(made)
        diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path / name, state)
    pipe, plain = pipeline(), pipeline()
    for each in (pipe, plain):
        each.enable_lora_hotswap(target_rank=8)
        each.load_lora_weights(tmp_path / "first", adapter_name="style")
    pipe.unet = fast = compiled(pipe.unet)
    first = same(pipe, plain)
    for each in (pipe, plain):
        each.load_lora_weights(tmp_path / "second", adapter_name="style", hotswap=True)
    assert not torch.allclose(same(pipe, plain), first)
    assert (fast.stats().graphs, fast.stats().calls["replayed"]) == (1, 4)
    for each in (pipe, plain):
        each.fuse_lora(lora_scale=0.5)
    same(pipe, plain)
    for each in (pipe, plain):
        each.unfuse_lora()
        each.unload_lora_weights()
    assert not torch.allclose(same(pipe, plain), first)
