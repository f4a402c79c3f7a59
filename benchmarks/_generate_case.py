"""transformers' generate() at the shape of Llama 3.2 1B: its own compiled decode step, and ours."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from _library_case import LibraryCase, Way, full_precision, said
from _llama_case import FULL_SIZE, TINY
from _place import Place

import piecewise_core as pw

__all__ = ["generate"]

OWN = "transformers' compiled"


def generate(place: Place) -> LibraryCase:
    """128 new tokens behind a prompt of 32, greedy, batch 1, with a static cache.

    Every way has a model of its own over the same weights: transformers keep what they compiled in
    the model, by the last setting that it was called with.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TINY if place.simulated else FULL_SIZE
    model = place.new(lambda: LlamaForCausalLM(LlamaConfig(**sizes)))
    length, count = (7, 6) if place.simulated else (32, 128)
    made = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, model.config.vocab_size, (1, length), generator=made)
    prompt = prompt.to(place.device)
    settings = {
        "inputs": prompt,
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": count,
        "do_sample": False,
        "pad_token_id": 0,
        # Looked for at every step, as in use, and no token: every way makes as many.
        "eos_token_id": [model.config.vocab_size],
    }
    exact = copy.deepcopy(model).float()

    def compare(result: Any, eager: Any) -> dict[str, Any]:
        same = (result.sequences[:, length:] == eager.sequences[:, length:]).float().mean()
        off = _errors(result, exact, length)
        return {
            "same_tokens": same.item(),
            "error": off.pow(2).mean().sqrt().item(),
            "worst_step_error": off.max().item(),
        }

    def result(way: Way) -> Any:
        return way.call(return_dict_in_generate=True, output_logits=True)  # type: ignore[call-arg]

    ways = _ways(model, settings, length + count, place)
    facts = {"prompt": length, "parameters": sum(p.numel() for p in model.parameters())}
    return LibraryCase("tokens", count, ways, result, compare, {OWN: 1.2, "eager": 5.0}, facts)


def _errors(result: Any, exact: Any, length: int) -> torch.Tensor:
    """How far the logits of each decode step are off, over their size.

    The model in float32 is given the tokens that this way chose: once tokens differ, they are other
    texts, whose logits do not compare.
    """
    with torch.no_grad(), full_precision():
        wanted = exact(result.sequences[:, :-1], use_cache=False).logits[0, length:]
    got = torch.cat(result.logits[1:]).float()  # the first are the prefill's
    return (got - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-12)


def _ways(
    model: Any, settings: dict[str, Any], longest: int, place: Place
) -> dict[str, Callable[[], Way]]:
    static = {**settings, "cache_implementation": "static"}

    def eager() -> Way:
        return Way(_generating(model, {**static, "disable_compile": True}))

    def own() -> Way:
        return Way(_generating(_twin(model), static), peer=True)

    def door() -> Way:
        setting = _compile_config(place)
        call = _generating(_twin(model), {**static, "compile_config": setting})
        return Way(call, lambda: said(model))

    def compiled(**config: Any) -> Callable[[], Way]:
        def make() -> Way:
            fast = place.compile(model, **config)
            return Way(_generating(fast, static), lambda: said(fast))

        return make

    def kept() -> Way:
        cache = _ready_cache(model, longest, place)
        token = pw.Dim("token", 1, longest)
        fast = place.compile(
            model,
            graph_mode="full",
            dynamic={"input_ids": {1: token}, "position_ids": {1: token}},
            capture_sizes=(1,),
            capture_max=False,
        )
        call = _generating(fast, {**settings, "past_key_values": cache}, cache.reset)
        return Way(call, lambda: said(fast))

    return {
        "eager": eager,
        **({OWN: own} if place.has_peers else {}),
        "compile_config": door,
        "pw.compile": compiled(),
        "pw.compile, full": compiled(graph_mode="full"),
        "pw.compile, kept cache": kept,
    }


def _generating(
    model: Any, settings: dict[str, Any], before: Callable[[], Any] = lambda: None
) -> Callable[..., Any]:
    def call(**more: Any) -> Any:
        before()
        return model.generate(**settings, **more)

    return call


def _twin(model: Any) -> Any:
    """Another model over the same weights."""
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def _compile_config(place: Place) -> Any:
    """What the how-to has users write; without a GPU, what makes transformers compile at all."""
    from transformers import CompileConfig

    if not place.simulated:
        return CompileConfig(backend="piecewise")
    options = _Uncopied(platform=place.platform, compiler=place.compiler)
    setting: Any = CompileConfig(backend="piecewise", mode=None, options=options)
    setting._compile_all_devices = True
    return setting


class _Uncopied(dict[str, Any]):
    """Options with a platform in them: transformers copy what a CompileConfig holds."""

    def __deepcopy__(self, memo: Any) -> _Uncopied:
        return self


def _ready_cache(model: Any, longest: int, place: Place) -> Any:
    from transformers import StaticCache

    config = model.config
    cache = StaticCache(config=config, max_cache_len=longest)
    heads, width = config.num_key_value_heads, config.head_dim
    cache.early_initialization(1, heads, width, place.dtype, model.device)
    return cache
