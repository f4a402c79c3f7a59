"""Models that several processes share, with random weights: by hand, and by transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from _place import Place
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

__all__ = ["decoder", "llama"]


class Layer(torch.nn.Module):
    """Attention and a gated MLP, a share of the heads and of the columns in each process."""

    def __init__(self, hidden: int, heads: int, world: int) -> None:
        super().__init__()
        made = {"bias": False}
        self.heads = heads // world
        self.qkv = torch.nn.Linear(hidden, 3 * hidden // world, **made)
        self.out = torch.nn.Linear(hidden // world, hidden, **made)
        self.gate_up = torch.nn.Linear(hidden, 8 * hidden // world, **made)
        self.down = torch.nn.Linear(4 * hidden // world, hidden, **made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, hidden], the same in every process, as is the result."""
        made = self.qkv(rms_norm(x, x.shape[-1:])).view(1, x.shape[0], 3 * self.heads, -1)
        q, k, v = made.transpose(1, 2).chunk(3, 1)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1)
        x = x + reduced(self.out(y))
        gate, up = self.gate_up(rms_norm(x, x.shape[-1:])).chunk(2, -1)
        return x + reduced(self.down(silu(gate) * up))


def reduced(x: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    return functional.all_reduce(x, "sum", dist.group.WORLD)


class Whole(torch.nn.Module):
    """Layers behind one argument with a name."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, hidden]."""
        result: torch.Tensor = self.layers(x)
        return result


class Logits(torch.nn.Module):
    """A causal model of one sequence, from embedded rows to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, hidden]."""
        result: torch.Tensor = self.model(inputs_embeds=x[None], use_cache=False).logits
        return result


def decoder(asked: argparse.Namespace, place: Place) -> tuple[torch.nn.Module, torch.Tensor]:
    """Layers split by hand, and an input."""
    torch.manual_seed(dist.get_rank())
    shape = (asked.hidden, asked.heads, asked.processes)
    with torch.device(place.device):
        layers = [Layer(*shape).to(place.dtype) for _ in range(asked.layers)]
    model = Whole(torch.nn.Sequential(*layers)).eval().requires_grad_(False)
    return model, _input(asked, place)


def llama(asked: argparse.Namespace, place: Place) -> tuple[torch.nn.Module, torch.Tensor]:
    """A Llama with the widths of its 8B and few layers, as its own tp_plan splits it."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    folder, asked.layers = Path(asked.folder, "llama"), min(asked.layers, 4)
    if dist.get_rank() == 0:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=asked.hidden,
            intermediate_size=7 * asked.hidden // 2,
            num_hidden_layers=asked.layers,
            num_attention_heads=asked.heads,
            num_key_value_heads=max(asked.heads // 4, asked.processes),
            vocab_size=32 * asked.hidden // 4,
        )
        with torch.device(place.device):
            made = LlamaForCausalLM(config).to(place.dtype)
        made.save_pretrained(folder)
        del made
    dist.barrier()
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=place.dtype)
    return Logits(model).eval().requires_grad_(False), _input(asked, place)


def _input(asked: argparse.Namespace, place: Place) -> torch.Tensor:
    made = torch.Generator().manual_seed(asked.rows[0])
    x = torch.randn(asked.rows[0], asked.hidden, generator=made)
    return x.to(place.device, place.dtype)
