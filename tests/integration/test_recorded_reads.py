"""Every way in which Python comes to know a tensor's value, recorded: right, and named by line."""

from __future__ import annotations

import copy
import io
import json
import math
import operator
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

VALUES = ([1, 2, 3], [3, 1, 2], [2, 3, 1])


def saved(t):
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    return torch.load(file)


def set_at(x, index):
    y = x.flatten().clone()
    y[index] = 5.0
    return y


def counted(x, t):
    left = t[0].clone()
    while left > 0:
        x, left = x + 1, left - 1
    return x


def matched(x, t):
    match int(t[0]):
        case 1:
            return x * 2
        case _:
            return x


READS = {
    # Numbers
    "bool": lambda x, t: x * 2 if bool(t[0] > 1) else x,
    "if": lambda x, t: x * 2 if t[0] > 1 else x,
    "not": lambda x, t: x * 2 if not t[0] > 1 else x,
    "and": lambda x, t: x * (t[0] - 1 and t[1]),
    "compared in a chain": lambda x, t: x * 2 if 0 < t[0] < 2 else x,
    "int": lambda x, t: x * int(t[0]),
    "float": lambda x, t: x * float(t[0]),
    "complex": lambda x, t: x * complex(t[0]).real,
    "index": lambda x, t: x * operator.index(t[0]),
    "item": lambda x, t: x * t[0].item(),
    "tolist": lambda x, t: x * t.tolist()[0],
    "round": lambda x, t: x * round(t[0].item() * 1.3),
    "math.floor": lambda x, t: x * math.floor(t[0]),
    "math.ceil": lambda x, t: x * math.ceil(t[0] * 0.7),
    "math.sqrt": lambda x, t: x * math.sqrt(t[0]),
    "math.gcd": lambda x, t: x * math.gcd(t[0], 6),
    "math.fsum": lambda x, t: x * math.fsum(t),
    "math.isclose": lambda x, t: x * 2 if math.isclose(t[0], 1) else x,
    # Questions
    "any": lambda x, t: x * 2 if (t > 2).any() else x,
    "Python's any": lambda x, t: x * 2 if any(t > 2) else x,
    "Python's all": lambda x, t: x * 2 if all(t > 1) else x,
    "in": lambda x, t: x * 2 if 3 in t else x,
    "in a list": lambda x, t: x * 2 if t[0] in [1, 2] else x,
    "list.index": lambda x, t: x * [1, 2, 3, 4].index(t[0]),
    "equal": lambda x, t: x * 2 if torch.equal(t, torch.tensor([1, 2, 3])) else x,
    "allclose": lambda x, t: x * 2 if torch.allclose(t.float(), torch.ones(3) * 2) else x,
    "is_nonzero": lambda x, t: x * 2 if torch.is_nonzero(t[0] - 1) else x,
    "max": lambda x, t: x * max(t[0], t[1]),
    "sorted": lambda x, t: x * sorted(t)[0],
    "functools.reduce": lambda x, t: x * reduce(max, t),
    "while": counted,
    "match": matched,
    # Texts
    "format": lambda x, t: x * float(format(t[0].float(), ".2f")),
    "an f-string": lambda x, t: x * float(f"{t[0]}"),
    "str": lambda x, t: x * sum(map(ord, str(t))),
    "repr": lambda x, t: x * sum(map(ord, repr(t))),
    "a percent": lambda x, t: x * int("%d" % t[0]),  # noqa: UP031
    "json": lambda x, t: x * sum(json.loads(json.dumps(t.tolist()))),
    # Sizes
    "arange": lambda x, t: x.sum() + torch.arange(t[0]).sum(),
    "range": lambda x, t: sum((x * i for i in range(t[0])), x),
    "full": lambda x, t: torch.full((t[0],), 1.0).sum() + x,
    "a filled value": lambda x, t: torch.full((2,), t[0]).sum() + x,
    "zeros": lambda x, t: torch.zeros(t[0], 2).numel() * x,
    "new_ones": lambda x, t: x.new_ones((t[0],)).sum() + x,
    "linspace": lambda x, t: torch.linspace(0, 1, int(t[0]) + 1).sum() + x,
    "a list's length": lambda x, t: x * len([0] * t[0]),
    "a list of tensors": lambda x, t: sum([x] * t[0], x),
    "repeat": lambda x, t: x.repeat(t[0], 1).sum(),
    "expand": lambda x, t: x[:1].expand(t[0], 4).sum() + x,
    "repeat_interleave": lambda x, t: torch.repeat_interleave(torch.arange(3.0), t).sum() + x,
    "len of nonzero": lambda x, t: x * len(t.sub(1).nonzero()),
    "rows of a mask": lambda x, t: x * t[t > 1].shape[0],
    "unique": lambda x, t: x * len(torch.unique(t)),
    "bincount": lambda x, t: x * torch.bincount(t).shape[0],
    "one_hot": lambda x, t: x * F.one_hot(t).shape[1],
    "pad": lambda x, t: F.pad(x, (t[0], t[1])).shape[1] * x,
    "pack_padded_sequence": lambda x, t: (
        pack_padded_sequence(x[:, :1].expand(3, 5), t, True, False).data.sum() + x
    ),
    # Places
    "a slice": lambda x, t: x.flatten()[: t[0]].sum(),
    "a slice of a list": lambda x, t: x * sum([1, 2, 3, 4, 5][: t[0]]),
    "an item of a list": lambda x, t: x * [10, 20, 30, 40, 50][t[0]],
    "an item of a dict": lambda x, t: x * {1: 10, 2: 20}.get(int(t[0]), 7),
    "select": lambda x, t: x.flatten().select(0, t[0]) + x,
    "narrow": lambda x, t: x.flatten().narrow(0, t[0], 1).sum(),
    "written at a number": lambda x, t: set_at(x, int(t[0])),
    "written at a slice": lambda x, t: set_at(x, slice(None, t[0])),
    "split": lambda x, t: x.repeat(4, 1).flatten()[: int(t.sum())].split(t.tolist())[1].sum(),
    "a dim": lambda x, t: x.sum(t[0] % 2).sum(),
    "roll": lambda x, t: x.flatten().roll(t[0]),
    # Other numbers of operators
    "clamp": lambda x, t: x.clamp(max=t[0].item()),
    "alpha": lambda x, t: torch.add(x, x, alpha=t[0]),
    "eps": lambda x, t: F.layer_norm(x, (4,), eps=float(t[0])),
    "scale": lambda x, t: F.scaled_dot_product_attention(x, x, x, scale=float(t[0])),
    # Copies that no operator makes
    "numpy": lambda x, t: x * int(t.numpy()[0]),
    "asarray": lambda x, t: x * int(np.asarray(t)[0]),
    "numpy.allclose": lambda x, t: x * 2 if np.allclose(t, [1, 2, 3]) else x,
    "from_dlpack": lambda x, t: x + torch.from_dlpack(t).sum(),
    "tensor of numbers": lambda x, t: torch.tensor([t[0], t[1]]).sum() + x,
    "a storage": lambda x, t: x * t.untyped_storage()[0],
    "pickle": lambda x, t: pickle.loads(pickle.dumps(t)).sum() + x,
    "pickle of what is computed": lambda x, t: pickle.loads(pickle.dumps([t + 1]))[0].sum() + x,
    "save": lambda x, t: saved(t).sum() + x,
    "a loop": lambda x, t: x * sum(int(i) for i in t),
}


def recorded(fn, **changes):
    rows = {"x": {0: pw.Dim("rows", min=1, max=8)}}
    config = pw.Config(dynamic=rows, capture_sizes=(3,), capture_max=False, **changes)
    return pw.record(fn, config, platform=SimulatedPlatform())


def check(fast, fn):
    for value in VALUES:
        x, t = torch.randn(3, 4), torch.tensor(value)
        torch.testing.assert_close(fast(x, t), fn(x, t))


@pytest.mark.parametrize("name", READS)
def test_a_value_that_python_comes_to_know_is_never_kept_and_its_line_is_named(name):
    """FAULTS 54."""
    fn = READS[name]
    fast = recorded(fn)
    check(fast, fn)
    assert fast.stats().calls["eager"] == len(VALUES)
    named = {n for n in fn.__code__.co_names if n in ("saved", "set_at")}
    codes = [fn.__code__, *(globals()[n].__code__ for n in named)]
    lines = {line for code in codes for _, _, line in code.co_lines() if line}
    assert any(f"test_recorded_reads.py:{line}" in str(fast.explain()) for line in lines)


def test_a_copy_of_the_tensor_object_alone_reads_no_value():
    def copied(x, t):
        return copy.copy(t).sum() + x

    fast = recorded(copied)
    check(fast, copied)
    assert fast.stats().calls["replayed"] == len(VALUES)


class Asks:
    """Has other threads work."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)

    def __call__(self, x, t):
        (found,) = self.pool.map(lambda one: one.tolist(), [t])
        return x * found[0]


def in_a_thread(x, t):
    found = []
    thread = threading.Thread(target=lambda: found.append(t[0].item()))
    thread.start()
    thread.join()
    return x * found[0]


def in_a_pool(x, t):
    with ThreadPoolExecutor(1) as pool:
        return x + pool.submit(lambda: t * 2).result().sum()


@pytest.mark.parametrize("make", [Asks, lambda: in_a_thread, lambda: in_a_pool])
def test_what_another_thread_does_is_not_recorded_and_said(make):
    fast = recorded(make())
    check(fast, make())
    assert fast.stats().calls["eager"] == len(VALUES)
    assert "another thread" in str(fast.explain())
