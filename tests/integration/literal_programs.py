"""Programs that make tensors of Python data, for one float matrix of two columns on any device."""

from __future__ import annotations

import numpy
import torch


def added(x):
    return x + torch.tensor(1.5, device=x.device)


def left_on_the_cpu(x):
    return x * torch.tensor(1.5)


def moved(x):
    return x + torch.tensor([1.0, 2.0]).to(x.device)


def computed(x):
    return x / torch.sqrt(torch.tensor(64, dtype=torch.float) * 3).to(x)


def of_numpy(x):
    return x + torch.as_tensor(numpy.array([1.0, 2.0]), device=x.device).float()


def like_another(x):
    return x + x.new_tensor([-0.0, 2.0])


def whole_numbers(x):
    return x * torch.tensor([3, 4], device=x.device)


def masked(x):
    return x.masked_fill(torch.tensor([True, False], device=x.device), float("-inf"))


def columns_by_a_list(x):
    return x[:, [1, 0]]


def columns_by_lists(x):
    return x[:, [[1, 0], [0, 1]]]


def pairs_by_tuples(x):
    return x[(0, 0), (1, 0)]


def one_row(x):
    return x[torch.tensor(0)]


def rows_by_a_literal(x):
    return x[torch.tensor([0, -1])]


def items_set(x):
    y = x.clone()
    y[:, 0] = 3.0
    y[[0]] = torch.tensor([1.0, 2.0], device=x.device)
    y[:, torch.tensor([1])] += 1
    return y


def summed_in_place(x):
    total = torch.tensor([0.0, 1.0], device=x.device)
    total += x.sum(0)
    return total


def number_in_place(x):
    total = torch.tensor(0.0, device=x.device)
    total += x.sum()
    return total


def written_through_a_view(x):
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=x.device)
    table[0] += x.sum(0)
    return table * 1, table[1]


def read_then_zeroed(x):
    scale = torch.tensor([1.0, 2.0], device=x.device)
    y = x + scale
    scale.zero_()
    return y + scale


def given_as_out(x):
    out = torch.tensor([1.0, 2.0], device=x.device)
    torch.add(x.sum(0), 1, out=out)
    return x + out


def returned(x):
    table = torch.tensor([1.0, 2.0], device=x.device)
    return {"sum": x + table, "tables": [table, table.view(2, 1)]}


def nothing_else_returned(x):
    return x, torch.tensor([1.0, 2.0], device=x.device), torch.tensor(3.0, device=x.device)


def per_layer(x):
    for _ in range(3):
        x = torch.tanh(x * torch.tensor([1.0, 2.0], device=x.device))
    return x


PROGRAMS = [value for value in list(globals().values()) if hasattr(value, "__code__")]
