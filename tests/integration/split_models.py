"""Models that two processes share, and what serves them: nothing of this is a test by itself."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import linear, scaled_dot_product_attention

import piecewise_core as pw

WIDTH, HEADS, WORDS = 16, 4, 32
NAMED = "torch.nn.functional.scaled_dot_product_attention"


class Block(torch.nn.Module):
    """Words, attention, an MLP, and a value for each word."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.q, self.k, self.v = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids):
        x = self.words(ids)
        q, k, v = (
            made(x).view(1, x.shape[1], -1, WIDTH // HEADS).transpose(1, 2)
            for made in (self.q, self.k, self.v)
        )
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(1, x.shape[1], -1))
        return self.head(x + self.down(torch.relu(self.up(x))))


class ByColumns(torch.nn.Module):
    """This rank's columns of a linear layer, as people split them by hand."""

    def __init__(self, whole, rank):
        super().__init__()
        self.weight = torch.nn.Parameter(whole.weight.chunk(2, 0)[rank].clone())
        self.bias = torch.nn.Parameter(whole.bias.chunk(2, 0)[rank].clone())

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class ByRows(torch.nn.Module):
    """This rank's rows of one, reduced behind it."""

    def __init__(self, whole, rank):
        super().__init__()
        self.weight = torch.nn.Parameter(whole.weight.chunk(2, 1)[rank].clone())
        self.bias = whole.bias

    def forward(self, x):
        return functional.all_reduce(linear(x, self.weight), "sum", dist.group.WORLD) + self.bias


def by_hand(rank, folder):
    model = Block()
    for name in ("q", "k", "v", "up"):
        setattr(model, name, ByColumns(getattr(model, name), rank))
    for name in ("out", "down"):
        setattr(model, name, ByRows(getattr(model, name), rank))
    return model


def by_torch(rank, folder):
    """Split by parallelize_module, the table of words and the last layer as well."""
    model = Block()
    plan = {name: ColwiseParallel() for name in ("q", "k", "v", "up")}
    plan |= {name: RowwiseParallel() for name in ("out", "down")}
    plan["words"] = RowwiseParallel(input_layouts=Replicate())
    plan["head"] = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    return model


def by_plan(rank, folder):
    """A Llama of transformers as its own tp_plan splits it."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if rank == 0:
        config = LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            vocab_size=WORDS,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    dist.barrier()
    return Logits(AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto"))


class Logits(torch.nn.Module):
    """Of a causal model, alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits


def not_at_all(rank, folder):
    """Each process has one of its own, beside the other's."""
    return Block()


MODELS = {
    "not at all": not_at_all,
    "by hand": by_hand,
    "by parallelize_module": by_torch,
    "by tp_plan": by_plan,
}
CONFIG = {"dynamic": {"ids": {1: pw.Dim("n", min=2, max=16)}}, "capture_sizes": (4,)}


def at_the_door(model):
    """As torch.compile serves it; no replays, which ranks could not agree on there."""
    torch._dynamo.reset()
    options = {"compiler": "eager"}
    return torch.compile(model, backend="piecewise", options=options, dynamic=True)


WAYS = {
    "compiled": lambda model: pw.compile(model, pw.Config(**CONFIG, compiler="eager"), "cpu"),
    "compiled and cut": lambda model: pw.compile(
        model, pw.Config(**CONFIG, compiler="eager", splitting_ops=(NAMED,)), "cpu"
    ),
    "recorded": lambda model: pw.record(model, pw.Config(**CONFIG), "cpu"),
    "at the door": at_the_door,
}


def outcome(model, make):
    """What is wrong with one way; how many calls were replayed."""
    fast = make(model)
    for turn, words in enumerate((4, 4, 7, 4, 16)):
        ids = torch.randint(0, WORDS, (1, words), generator=torch.Generator().manual_seed(turn))
        want, got = model(ids), fast(ids)
        if not torch.allclose(got, want, atol=1e-6):
            return f"{words} words: apart by {float((got - want).abs().max())}", 0
    return "", fast.stats().calls["replayed"] if make is not at_the_door else 0


def work(rank, meeting, results, folder, tried):
    """One process: each model in its ways, in the order of the other."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # As torchrun says it, where transformers reads it.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    store = f"file://{meeting}"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=limit)
    found = {}
    with torch.inference_mode():
        for kind, ways in tried.items():
            torch.manual_seed(0)
            model = MODELS[kind](rank, folder).eval()
            for way in ways:
                try:
                    found[f"{kind}, {way}"] = outcome(model, WAYS[way])
                except Exception:
                    found[f"{kind}, {way}"] = traceback.format_exc()[-2000:], 0
    Path(f"{results}{rank}").write_text(json.dumps(found))
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


def both(folder, tried):
    """What two processes found, each; ``tried``: the ways of each model."""
    context = multiprocessing.get_context("spawn")
    paths = (f"{folder}/meeting", f"{folder}/results", f"{folder}/model", tried)
    processes = [context.Process(target=work, args=(rank, *paths)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
    return [json.loads(Path(f"{paths[1]}{rank}").read_text()) for rank in range(2)]
