"""Models that people serve, at their published shapes, with random weights: the benchmark's data.

Every case gives a model and, for each size, calls that any way of running it can be asked for. A
call that needs a cache makes one of its own, filled alike. Tiny shapes stand in where
``place.simulated``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from _dit import PATCH, Dit
from _llama_case import FULL_SIZE, TINY
from _place import Place

import piecewise_core as pw

__all__ = ["Case", "cases", "names"]

Run = Callable[..., Any]
ATTENTION = ("torch.nn.functional.scaled_dot_product_attention",)
LLAMA_8B = {
    **FULL_SIZE,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Case:
    """``model``: [module]. ``calls(run)``: a call for each size, by the size's name.

    ``settings``: for Config, captured sizes among them. ``captured``: whether graphs are asked for
    at all. ``kept``: bytes beside the weights that a call must read, by size.
    """

    model: Any
    calls: Callable[[Run], dict[str, Callable[[], torch.Tensor]]]
    settings: dict[str, Any]
    captured: bool = True
    kept: dict[str, int] = field(default_factory=dict)


def cases() -> dict[str, Callable[[Place], Case]]:
    """Every case by name; building one makes its model."""
    return {
        **{f"llama1b-decode-{b}-{c}": partial(_decode, FULL_SIZE, b, c) for b, c in _DECODES},
        "llama8b-decode-1-512": partial(_decode, LLAMA_8B, 1, 512),
        "llama1b-prefill": _prefill,
        **{f"whisper-encoder-{b}": partial(_whisper_encoder, b) for b in (1, 8)},
        "whisper-decoder-1": _whisper_decoder,
        **{f"vit-l-{b}": partial(_vit, b) for b in (1, 4, 32)},
        **{f"sd15-unet-{b}": partial(_unet, b) for b in (2, 8)},
        "sdxl-unet-2": _sdxl,
        "dit-2": _dit,
        **{f"qwen3moe-decode-{b}": partial(_experts, b) for b in (1, 8)},
        "mamba2-1": _mamba,
        "bert": _bert,
    }


_DECODES = ((1, 512), (1, 4096), (8, 512), (8, 4096), (32, 512))


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    return transformers


def _plain(given: dict[str, dict[str, Any]]) -> Callable[[Run], dict[str, Callable[[], Any]]]:
    """Calls without a cache: the first tensor of each result."""

    def calls(run: Run) -> dict[str, Callable[[], torch.Tensor]]:
        return {size: partial(_first, run, inputs) for size, inputs in given.items()}

    return calls


def _first(run: Run, inputs: dict[str, Any]) -> torch.Tensor:
    result = run(**inputs)
    if isinstance(result, torch.Tensor):
        return result
    return next(iter(result.values())) if hasattr(result, "values") else result[0]


# Decoders -----------------------------------------------------------------------------------


def _decode(shape: dict[str, Any], batch: int, length: int, place: Place) -> Case:
    library = _transformers()
    shape, length = (TINY, 32) if place.simulated else (shape, length)
    model = place.new(lambda: library.LlamaForCausalLM(library.LlamaConfig(**shape)))
    return _one_token(model, batch, length, place)


def _experts(batch: int, place: Place) -> Case:
    library = _transformers()
    layers, experts = (2, 4) if place.simulated else (12, 128)
    config = library.Qwen3MoeConfig(
        vocab_size=97 if place.simulated else 151936,
        hidden_size=32 if place.simulated else 2048,
        moe_intermediate_size=16 if place.simulated else 768,
        num_hidden_layers=layers,
        num_attention_heads=4 if place.simulated else 32,
        num_key_value_heads=2 if place.simulated else 4,
        head_dim=8 if place.simulated else 128,
        num_experts=experts,
        num_experts_per_tok=2 if place.simulated else 8,
    )
    # The loop over experts waits for the device, which no graph can.
    config._experts_implementation = "grouped_mm"
    model = place.new(lambda: library.Qwen3MoeForCausalLM(config))
    return _one_token(model, batch, 32 if place.simulated else 512, place)


def _one_token(model: Any, batch: int, length: int, place: Place) -> Case:
    """A decode step in the middle of a static cache that is filled alike for everyone."""
    library = _transformers()
    config = model.config
    heads, width = config.num_key_value_heads, config.head_dim

    def calls(run: Run) -> dict[str, Callable[[], torch.Tensor]]:
        cache = library.StaticCache(config=config, max_cache_len=length)
        cache.early_initialization(batch, heads, width, place.dtype, model.device)
        made = torch.Generator(model.device).manual_seed(2)
        for layer in cache.layers:
            for kept in (layer.keys, layer.values):
                kept.normal_(generator=made)
        inputs = {
            "input_ids": torch.arange(1, batch + 1, device=model.device)[:, None],
            "position_ids": torch.full((batch, 1), length // 2, device=model.device),
            "past_key_values": cache,
            "use_cache": True,
        }

        def step() -> torch.Tensor:
            # transformers count the cache's tokens as they are written: the same place each time.
            for layer in cache.layers:
                if hasattr(layer, "cumulative_length"):
                    _set(layer, "cumulative_length", length // 2)
            return _first(run, inputs)

        return {f"{batch} x 1 of {length}": step}

    token = pw.Dim("token", 1, 1)
    settings = {
        "dynamic": {"input_ids": {1: token}, "position_ids": {1: token}},
        "splitting_ops": ATTENTION,
        "capture_sizes": (1,),
    }
    elements = 2 * config.num_hidden_layers * batch * heads * length * width
    return Case(
        model, calls, settings, kept={f"{batch} x 1 of {length}": elements * place.dtype.itemsize}
    )


def _set(layer: Any, name: str, value: int) -> None:
    """Set a counter of a cache, in place where it is a tensor."""
    counter = getattr(layer, name)
    if isinstance(counter, torch.Tensor):
        counter.fill_(value)
    else:
        setattr(layer, name, value)


def _prefill(place: Place) -> Case:
    """Prompts of any length, no graphs: what a server runs before it decodes."""
    library = _transformers()
    lengths = (5, 8) if place.simulated else (17, 128, 512, 1000, 2048, 4000)
    model = place.new(
        lambda: library.LlamaForCausalLM(
            library.LlamaConfig(**(TINY if place.simulated else FULL_SIZE))
        )
    )

    def given(length: int) -> dict[str, Any]:
        ids = torch.arange(length, device=model.device)[None] % (model.config.vocab_size - 1) + 1
        return {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}

    token = pw.Dim("token", 2, max(lengths))
    settings = {"dynamic": {"input_ids": {1: token}}, "splitting_ops": ATTENTION}
    return Case(model, _plain({str(n): given(n) for n in lengths}), settings, captured=False)


# Speech, images, text ----------------------------------------------------------------------------


def _whisper_shape(place: Place) -> dict[str, Any]:
    width, layers, heads = (32, 2, 4) if place.simulated else (768, 12, 12)
    return {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "max_source_positions": 50 if place.simulated else 1500,
    }


def _whisper_encoder(batch: int, place: Place) -> Case:
    library = _transformers()
    config = library.WhisperConfig(**_whisper_shape(place))
    model = place.new(lambda: library.WhisperModel(config)).encoder
    frames = 2 * config.max_source_positions
    sound = _normal(place, batch, config.num_mel_bins, frames)
    return _batched(model, {"input_features": sound}, batch)


def _whisper_decoder(place: Place) -> Case:
    """One token after a prompt of four, against what the encoder heard, without a cache."""
    library = _transformers()
    config = library.WhisperConfig(**_whisper_shape(place))
    model = place.new(lambda: library.WhisperModel(config)).decoder
    heard = _normal(place, 1, config.max_source_positions, config.d_model)
    ids = torch.arange(1, 6, device=place.device)[None]
    inputs = {"input_ids": ids, "encoder_hidden_states": heard, "use_cache": False}
    length = pw.Dim("length", 2, 8)
    settings = {
        "dynamic": {"input_ids": {1: length}},
        "splitting_ops": ATTENTION,
        "capture_sizes": (5,),
    }
    return Case(model, _plain({"1 x 5": inputs}), settings)


def _vit(batch: int, place: Place) -> Case:
    library = _transformers()
    width, layers, heads, side = (32, 2, 4, 32) if place.simulated else (1024, 24, 16, 224)
    config = library.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=side,
    )
    model = place.new(lambda: library.ViTModel(config, add_pooling_layer=False))
    return _batched(model, {"pixel_values": _normal(place, batch, 3, side, side)}, batch)


def _bert(place: Place) -> Case:
    library = _transformers()
    sizes = [(1, 8), (2, 4)] if place.simulated else [(1, 8), (1, 128), (8, 128), (32, 128)]
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48}
    config = library.BertConfig(num_attention_heads=12, **(shape if place.simulated else {}))
    model = place.new(lambda: library.BertModel(config, add_pooling_layer=False))

    def given(batch: int, length: int) -> dict[str, Any]:
        ids = torch.randint(1, 1000, (batch, length), device=place.device)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        return {"input_ids": ids, "attention_mask": mask}

    batch, length = pw.Dim("batch", 1, 32), pw.Dim("length", 2, 128)
    settings = {
        "dynamic": {n: {0: batch, 1: length} for n in ("input_ids", "attention_mask")},
        "splitting_ops": ATTENTION,
        "capture_sizes": tuple(sorted(sizes)),
        "capture_max": False,
    }
    return Case(model, _plain({f"{b} x {n}": given(b, n) for b, n in sizes}), settings)


def _mamba(place: Place) -> Case:
    library = _transformers()
    config = library.Mamba2Config(
        hidden_size=32 if place.simulated else 2048,
        num_hidden_layers=2 if place.simulated else 24,
        num_heads=8 if place.simulated else 64,
        head_dim=8 if place.simulated else 64,
        n_groups=1,
        state_size=16 if place.simulated else 128,
        vocab_size=97 if place.simulated else 50288,
        chunk_size=8 if place.simulated else 256,
    )
    model = place.new(lambda: library.Mamba2Model(config))
    length = 16 if place.simulated else 512
    inputs = {"input_ids": torch.arange(length, device=place.device)[None] % 97, "use_cache": False}
    dim = pw.Dim("length", config.chunk_size, length, multiple_of=config.chunk_size)
    settings = {"dynamic": {"input_ids": {1: dim}}, "capture_sizes": (length,)}
    return Case(model, _plain({f"1 x {length}": inputs}), settings)


# Diffusion -------------------------------------------------------------------------------------


def _dit(place: Place) -> Case:
    width, layers, patches = (12, 2, 4) if place.simulated else (1152, 28, 256)
    model = place.new(lambda: Dit(layers, width))
    inputs = {
        "patches": _normal(place, 2, patches, PATCH),
        "place": _normal(place, patches, width),
        "condition": _normal(place, 2, width),
    }
    dim = pw.Dim("patches", 1, patches)
    settings = {
        "dynamic": {"patches": {1: dim}, "place": {0: dim}},
        "splitting_ops": ATTENTION,
        "capture_sizes": (patches,),
    }
    return Case(model, _plain({f"2 x {patches}": inputs}), settings)


def _unet(batch: int, place: Place) -> Case:
    """Stable Diffusion 1.5's, for images of 512 x 512."""
    sizes: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    return _diffusers_unet(place, batch, sizes, 64, {})


def _sdxl(place: Place) -> Case:
    """SDXL base's shape, for images of 1024 x 1024."""
    sizes: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    }
    if place.simulated:
        sizes = {name: sizes[name] for name in sizes if name.startswith(("addition", "projection"))}
    added = {"text_embeds": _normal(place, 2, 1280), "time_ids": _normal(place, 2, 6)}
    return _diffusers_unet(place, 2, sizes, 128, {"added_cond_kwargs": added})


def _diffusers_unet(
    place: Place, batch: int, sizes: dict[str, Any], side: int, more: dict[str, Any]
) -> Case:
    from diffusers import UNet2DConditionModel

    if place.simulated:
        sizes, side = {**sizes, **_TINY_UNET}, 16
    model = place.new(lambda: UNet2DConditionModel(sample_size=side, **sizes))
    inputs = {
        "sample": _normal(place, batch, 4, side, side),
        "timestep": torch.tensor(500, device=place.device),
        "encoder_hidden_states": _normal(place, batch, 77, model.config.cross_attention_dim),
        **more,
    }
    dim = pw.Dim("batch", 1, batch)
    named: dict[str, Any] = {"sample": {0: dim}, "encoder_hidden_states": {0: dim}}
    if more:
        named |= {f"added_cond_kwargs.{name}": {0: dim} for name in more["added_cond_kwargs"]}
    settings = {"dynamic": named, "splitting_ops": ATTENTION, "capture_sizes": (batch,)}
    return Case(model, _plain({f"{batch} x {side} x {side}": inputs}), settings)


_TINY_UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}


# ----------------------------------------------------------------------------------------------


def _batched(model: Any, inputs: dict[str, Any], batch: int) -> Case:
    """Inputs whose first dim is the batch, captured at this batch."""
    dim = pw.Dim("batch", 1, max(batch, 2))
    settings = {
        "dynamic": {name: {0: dim} for name in inputs},
        "splitting_ops": ATTENTION,
        "capture_sizes": (batch,),
        "capture_max": False,
    }
    return Case(model, _plain({f"batch {batch}": inputs}), settings)


def _normal(place: Place, *shape: int) -> torch.Tensor:
    made = torch.Generator(place.device).manual_seed(3)
    return torch.randn(shape, device=place.device, dtype=place.dtype, generator=made)


def names(chosen: Sequence[str] | None) -> list[str]:
    """The cases that ``chosen`` names or begins the names of; all without it."""
    every = list(cases())
    if not chosen:
        return every
    unknown = [c for c in chosen if not any(n.startswith(c) for n in every)]
    if unknown:
        raise SystemExit(f"no such case: {', '.join(unknown)}; there are {', '.join(every)}")
    return [n for n in every if any(n.startswith(c) for c in chosen)]
