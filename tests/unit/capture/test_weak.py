"""Tensors over memory that a capture does not keep: one for each tensor."""

from __future__ import annotations

import torch

from piecewise_core.capture.weak import WeakTensors, writable


def test_a_tensor_is_asked_for_once():
    asked = []
    weak = WeakTensors(lambda t: asked.append(id(t)) or t.detach())
    x, y = torch.ones(3), torch.ones(3)
    assert weak.of(x) is weak.of(x)
    assert weak.all_of((x, [y])) == (weak.of(x), weak.of(y))
    assert asked == [id(x), id(y)]


def test_the_next_tensor_of_an_id_is_another():
    weak, seen = WeakTensors(lambda t: t.clone()), set()
    for value in range(50):
        x = torch.full((2,), float(value))
        seen.add(id(x))
        assert weak.of(x).tolist() == [value, value]
        del x
    assert len(seen) < 50


def test_what_is_made_of_results_may_be_written_to_outside_of_inference_mode():
    weak = WeakTensors(writable)
    with torch.inference_mode():
        (made,) = weak.all_of((torch.ones(2),))
    made.add_(1)
    assert made.tolist() == [2, 2]
