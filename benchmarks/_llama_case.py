"""Decoding with transformers' Llama at the size of Llama 3.2 1B, random weights, a static cache.

A StaticCache holds one batch size, so a server compiles a decode step per batch size: one token
per row, the same cache object at every call, next token and position copied in. The attention
function is the splitting op. One process per batch size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from _gpu_measure import Contender, Times, take_turns
from _peers import Evidence, overhead, settle
from _place import Place
from _targets import Target, print_table, print_targets

import piecewise_core as pw

__all__ = ["llama"]

ATTENTION = ("torch.nn.functional.scaled_dot_product_attention",)
FULL_SIZE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}


class Decoding:
    """One contender's cache, token and position; ``step()`` is one token for every row."""

    def __init__(self, run: Callable[..., Any], model: Any, batch: int, place: Place) -> None:
        from transformers import StaticCache

        config = model.config
        length = 32 if place.simulated else 512
        self.run = run
        self.cache = StaticCache(config=config, max_cache_len=length)
        self.cache.early_initialization(
            batch, config.num_key_value_heads, config.head_dim, place.dtype, model.device
        )
        generator = torch.Generator().manual_seed(1)
        first = torch.randint(1, config.vocab_size, (batch, 1), generator=generator)
        self._first = first.to(place.device)
        self.token = self._first.clone()
        self.position = torch.zeros_like(self.token)

    def forward(self) -> Any:
        """The logits of the next token."""
        out = self.run(
            input_ids=self.token,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out if isinstance(out, torch.Tensor) else out.logits

    def step(self) -> None:
        """Decode greedily; the results are the inputs of the next step."""
        self.token.copy_(self.forward()[:, -1:].argmax(-1))
        self.position.add_(1)

    def restart(self) -> None:
        """Forget what was decoded."""
        self.cache.reset()
        self.token.copy_(self._first)
        self.position.zero_()

    def tokens(self, steps: int) -> torch.Tensor:
        """What greedy decoding gives: [batch, steps]."""
        self.restart()
        found = []
        for _ in range(steps):
            self.step()
            found.append(self.token.clone())
        return torch.cat(found, 1).cpu()


def llama(place: Place, batch: int) -> dict[str, Any]:
    """Tokens per second of a decode step at one batch size."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TINY if place.simulated else FULL_SIZE
    model = place.new(lambda: LlamaForCausalLM(LlamaConfig(**sizes)))
    token = pw.Dim("token", 1, 1)
    settings: dict[str, Any] = {
        "dynamic": {"input_ids": {1: token}, "position_ids": {1: token}},
        "splitting_ops": ATTENTION,
        "capture_sizes": (1,),
    }
    ways: dict[str, Callable[..., Any]] = {"eager": model}
    if place.has_peers:
        ways["torch.compile"] = torch.compile(model)
        ways["reduce-overhead"] = overhead(model)
    ways["recorded"] = place.record(_logits_of(model), **settings)
    ways["piecewise"] = place.compile(model, graph_mode="piecewise", **settings)
    ways["full"] = place.compile(model, graph_mode="full", **settings)
    decoding = {name: Decoding(run, model, batch, place) for name, run in ways.items()}
    with torch.no_grad():
        evidence = _warm(place, decoding)
        steps = 8 if place.simulated else 64
        tokens = {name: each.tokens(steps) for name, each in decoding.items()}
    same = {n: (t == tokens["eager"]).float().mean().item() for n, t in tokens.items()}
    contenders = [
        Contender(name, each.step, torch.no_grad, each.restart) for name, each in decoding.items()
    ]
    times = take_turns(contenders, place, repeats=4 if place.simulated else 64)
    rate = {name: batch / t.wall * 1e6 for name, t in times.items()}
    rows = [(n, rate[n], t.host, t.wall, f"{same[n]:.3f}") for n, t in times.items()]
    print_table(
        f"Llama 3.2 1B shape, batch {batch}: one decode step and argmax",
        ("", "tokens/s", "host us", "wall us", f"tokens as eager's of {steps}"),
        rows,
    )
    for each in evidence:
        print(f"{each.name}: {each.problem or f'{each.graphs} graphs, valid'}")
    stats = ways["piecewise"].stats()  # type: ignore[attr-defined]
    targets = _targets(times, evidence, batch, same["recorded"])
    return {
        "batch": batch,
        "tokens_per_second": rate,
        "microseconds": {n: {"host": t.host, "wall": t.wall} for n, t in times.items()},
        "same_tokens_as_eager": same,
        "replayed": stats.calls["replayed"],
        "captures": stats.captures,
        "explain_recorded": str(ways["recorded"].explain()),  # type: ignore[attr-defined]
        "peers": [each.to_dict() for each in evidence],
        "targets": print_targets(targets, simulated=place.simulated),
    }


def _logits_of(model: Any) -> Callable[..., torch.Tensor]:
    """The model's logits alone: what ``pw.record`` records may not return the cache."""

    def logits(
        input_ids: torch.Tensor, position_ids: torch.Tensor, past_key_values: Any, use_cache: bool
    ) -> torch.Tensor:
        out = model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        found: torch.Tensor = out.logits
        return found

    return logits


def _warm(place: Place, decoding: dict[str, Decoding]) -> list[Evidence]:
    """Compile, capture and record everything there is."""
    evidence = []
    for name, each in decoding.items():
        each.restart()
        print(f"warming up {name}", flush=True)
        if name in ("torch.compile", "reduce-overhead"):
            evidence.append(settle(name, each.step, place, graphs=name == "reduce-overhead"))
            continue
        for _ in range(3):
            each.step()
        place.synchronize()
    return evidence


def _targets(
    times: dict[str, Times], evidence: list[Evidence], batch: int, same: float
) -> list[Target]:
    found = [Target("greedy tokens of recorded equal to eager's", same, 1, "", at_least=True)]
    if batch != 1:
        return found
    ours = times["piecewise"].wall
    problem = next((e.problem for e in evidence if e.name == "reduce-overhead"), "no peer here")
    peer = times["reduce-overhead"].wall if not problem else None
    return [
        *found,
        Target(
            "tokens/s over reduce-overhead's",
            peer / ours if peer else None,
            0.97,
            at_least=True,
            note=f"not valid: {problem}" if problem else "",
        ),
        Target("tokens/s over eager's", times["eager"].wall / ours, 2, at_least=True),
    ]
