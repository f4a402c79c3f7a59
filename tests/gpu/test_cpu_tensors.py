"""Tensors of the CPU beside a device's, in captured forwards: each call's own values are used."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu

WAYS = ["eager", "inductor", "recorded"]
GATE = torch.tensor(1.0)


def denoise(x, timestep):
    return torch.softmax(x * timestep, -1) + timestep


def embedded(x, timestep):
    """What diffusion models do with a timestep."""
    steps = timestep[None].to(x.device).expand(x.shape[0])
    angles = steps[:, None].float() * torch.exp(-torch.arange(4, device=x.device))[None]
    return x[:, :8] + torch.cat([angles.sin(), angles.cos()], -1)


def computed_on_the_cpu(x, timestep):
    scale = (timestep * 2 + 1).sqrt()
    return x * scale, scale


def copied_within(x, timestep):
    y = x.clone()
    y[0] = timestep
    return y + torch.where(x > 0, timestep, x)


def of_the_module(x, timestep):
    return x * GATE + timestep


MODELS = [denoise, embedded, computed_on_the_cpu, copied_within, of_the_module]


def build(gpu, way, model, **settings):
    settings = {"splitting_ops": (), "capture_sizes": (8,), "capture_max": False, **settings}
    if way == "recorded":
        return gpu.record(model, **settings)
    return gpu.compile(model, compiler=way, **settings)


def check(gpu, fast, model, numbers, dtype=torch.float32, kind=torch.float32, **tolerance):
    for number in numbers:
        x, timestep = gpu.randn(8, 32).to(dtype), torch.tensor(number, dtype=kind)
        GATE.fill_(number + 1)
        found, expected = fast(x, timestep), model(x, timestep)
        torch.testing.assert_close(found, expected, **tolerance)
    assert fast.stats().calls["replayed"], fast.explain()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS, ids=lambda fn: fn.__name__)
def test_a_replay_sees_the_new_value(gpu, model, way):
    check(gpu, build(gpu, way, model), model, range(5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [torch.int64, torch.float64, torch.bool])
def test_a_number_of_another_dtype_changes_no_dtype(gpu, kind, way):
    model = lambda x, t: (x * t + t, torch.maximum(x, t.to(x)))  # noqa: E731
    check(gpu, build(gpu, way, model), model, [0, 1, 3], kind=kind, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["eager", "recorded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_meet_a_number_as_they_do_without_graphs(gpu, dtype, way):
    def model(x, t):
        return x * t, x + t, x - t, x / t, t - x, t / x, x.clone().mul_(t), x.clone().div_(t)

    fast = build(gpu, way, model)
    check(gpu, fast, model, [1.2345, 999.5, 0.3], dtype=dtype, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_positions_and_one_element_tensors_of_the_cpu(gpu, way):
    def model(x, places):
        return x[places] * 2, x + places[:1].to(x.device, x.dtype)

    fast = build(gpu, way, model)
    # The memory that is given out next holds what is no position of anything.
    far = [torch.full((64,), 1 << 40, device=gpu.randn(1).device) for _ in range(64)]
    del far
    for places in ([0, 1], [7, 3], [2, 2]):
        x, index = gpu.randn(8, 32), torch.tensor(places)
        torch.testing.assert_close(fast(x, index), model(x, index), rtol=1e-4, atol=1e-4)
    assert fast.stats().calls["replayed"], fast.explain()


@pytest.mark.parametrize("way", WAYS)
def test_static_inputs_may_be_of_the_cpu(gpu, way):
    fast = build(gpu, way, denoise, inputs="static")
    x, timestep = gpu.randn(8, 32), torch.tensor(0.0)
    for number in range(4):
        x.normal_()
        timestep.fill_(number)
        torch.testing.assert_close(fast(x, timestep), denoise(x, timestep), rtol=1e-4, atol=1e-4)
    assert fast.stats().calls["replayed"], fast.explain()


@pytest.mark.parametrize("mode", ["piecewise", "full", "full_and_piecewise"])
def test_every_graph_mode(gpu, mode):
    fast = build(gpu, "eager", computed_on_the_cpu, graph_mode=mode)
    check(gpu, fast, computed_on_the_cpu, range(4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_write_to_a_tensor_of_the_cpu_is_the_caller_s(gpu, way):
    def model(x, timestep):
        y = x * timestep
        timestep.add_(1)
        return y + timestep

    fast, number = build(gpu, way, model), 1.0
    for _ in range(4):
        x, ours, theirs = gpu.randn(8, 32), torch.tensor(number), torch.tensor(number)
        torch.testing.assert_close(fast(x, ours), model(x, theirs), rtol=1e-4, atol=1e-4)
        assert ours.item() == theirs.item() == number + 1
        number += 1
