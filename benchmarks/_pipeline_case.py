"""A diffusers pipeline at the shape of Stable Diffusion 1.5: its network eager, torch's, ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _library_case import LibraryCase, Way, full_precision, said
from _peers import overhead
from _place import Place

import piecewise_core as pw

__all__ = ["sd"]

OVERHEAD = "reduce-overhead"
TINY = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}


def sd(place: Place) -> LibraryCase:
    """One image of 512 x 512 in 20 steps with guidance, so the network has a batch of 2.

    Prompts are tensors and the result is the latent image: of the pipeline only the network has the
    real shapes, and nothing is downloaded.
    """
    from diffusers import UNet2DConditionModel

    real: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    sizes = TINY if place.simulated else real
    side, steps = (16, 3) if place.simulated else (64, 20)
    unet = place.new(lambda: UNet2DConditionModel(sample_size=side, **sizes))
    call = partial(_image, side=side, steps=steps, place=place)
    with full_precision():
        exact = call(_pipeline(copy.deepcopy(unet).float()), dtype=torch.float32)

    def way(make: Callable[[], Any], *, peer: bool = False, ours: bool = True) -> Any:
        def made() -> Way:
            network = make()
            pipe = _pipeline(network)
            facts = partial(said, network) if ours else dict
            return Way(lambda: call(pipe, dtype=place.dtype), facts, peer)

        return made

    def compare(result: torch.Tensor, eager: torch.Tensor) -> dict[str, Any]:
        return {"error": _off(result, exact), "off_eager": _off(result, eager)}

    peer = way(lambda: overhead(unet), peer=True, ours=False)
    ways = {
        "eager": way(lambda: unet, ours=False),
        **({OVERHEAD: peer} if place.has_peers else {}),
        "pw.compile": way(lambda: place.compile(unet, **_how_to(side))),
        "backend": way(lambda: _door(unet, place)),
        "pw.compile, one size": way(lambda: place.compile(unet, graph_mode="full")),
    }
    facts = {"steps": steps, "parameters": sum(p.numel() for p in unet.parameters())}
    aims = {OVERHEAD: 1.0} if place.has_peers else {"eager": 1.0}
    return LibraryCase("images", 1, ways, lambda each: each.call(), compare, aims, facts)


def _pipeline(unet: Any) -> Any:
    """The pipeline around a network; the autoencoder only says how much smaller latents are."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        unet=unet,
        vae=AutoencoderKL(
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ).to(unet.device),  # where the pipeline takes its own device from
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
        ),
        requires_safety_checker=False,
        **absent,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _image(pipe: Any, *, side: int, steps: int, place: Place, dtype: torch.dtype) -> torch.Tensor:
    """The same image whatever the network's dtype: noise and texts are drawn in float32."""
    made = torch.Generator().manual_seed(0)
    width = pipe.unet.config.cross_attention_dim

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made).to(place.dtype).to(place.device, dtype)

    return pipe(
        prompt_embeds=drawn(1, 77, width),
        negative_prompt_embeds=drawn(1, 77, width),
        latents=drawn(1, 4, side, side),
        height=8 * side,
        width=8 * side,
        num_inference_steps=steps,
        output_type="latent",
    ).images


def _how_to(side: int) -> dict[str, Any]:
    """What docs/howto/diffusion.md has users write."""
    height, width = (pw.Dim(name, min=8, max=128, multiple_of=8) for name in ("height", "width"))
    return {
        "dynamic": {"sample": {2: height, 3: width}},
        "capture_sizes": [(side, side)],
        "capture_max": False,
    }


def _door(unet: Any, place: Place) -> Any:
    if not place.simulated:
        return torch.compile(unet, backend="piecewise")
    own = {"platform": place.platform, "compiler": place.compiler}
    return torch.compile(unet, backend="piecewise", options=own)


def _off(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    got, right = result.double(), wanted.double()
    return float((got - right).norm() / right.norm().clamp(min=1e-12))
