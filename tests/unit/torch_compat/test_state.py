"""Every switch of torch that changes code has a name and a value, and can be set elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from torch._functorch import config as functorch_config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from piecewise_core.torch_compat.around import in_force
from piecewise_core.torch_compat.state import (
    set_torch_state,
    switches_digest,
    torch_state,
)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = torch_state()
    yield
    set_torch_state(before)
    assert torch_state() == before


CHANGES = {
    "default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "default_device": lambda: torch.set_default_device("meta"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "cuda.matmul.fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "mkldnn.enabled": lambda: torch._C._set_mkldnn_enabled(False),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "attention.flash": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "attention.math": lambda: torch.backends.cuda.enable_math_sdp(False),
    "attention.fastpath": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "autocast.cpu": lambda: torch.set_autocast_dtype("cpu", torch.float16),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_somebody_switches_is_seen_and_can_be_set_again(name):
    before = torch_state()
    if name not in before:
        pytest.skip("this torch has no such switch")
    CHANGES[name]()
    changed = pickle.loads(pickle.dumps(torch_state()))
    assert changed[name] != before[name]
    set_torch_state(before)
    assert torch_state() == before
    set_torch_state(changed)
    assert torch_state() == changed


def test_flushing_of_denormals_is_asked_of_the_processor():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    assert torch_state()["denormals_flushed"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_autocast_is_told_with_its_dtype_and_cache(device):
    with torch.autocast("cpu", torch.bfloat16), ExitStack() as stack:
        if device == "cuda":
            torch.set_autocast_enabled("cuda", True)
            stack.callback(torch.set_autocast_enabled, "cuda", False)
        inside = torch_state()
        assert device in [found[0] for found in inside["autocast"]]
        with torch.autocast("cpu", torch.float16):
            assert torch_state() != inside
    assert "autocast" not in torch_state()
    set_torch_state(inside)
    assert torch.is_autocast_enabled(device)


def test_what_has_no_value_is_told_by_name():
    class Doubling(TorchFunctionMode):
        pass

    class Logging(TorchDispatchMode):
        pass

    assert in_force() is None
    with torch.device("cpu"):
        assert in_force() is None
    with torch.device("meta"):
        assert in_force() == 'torch.device("meta") as a context'
    with Doubling():
        assert "Doubling" in str(in_force())
    with Logging():
        assert in_force() is not None
    told = []
    torch.vmap(lambda x: told.append(in_force()) or x)(torch.ones(2))
    assert told == ["a transform of torch.func"]


def test_what_continuous_integration_turns_on_in_torch_keeps_the_key():
    """Torch makes a warning of its own an error where CI is set; the code is the same."""
    before = switches_digest()
    with functorch_config.patch(error_on_custom_op_aliasing=True):
        assert switches_digest() == before
    with functorch_config.patch(error_on_custom_op_aliasing=False):
        assert switches_digest() == before


@pytest.mark.parametrize(
    "name", ["cse", "functionalize_rng_ops", "view_replay_for_aliased_outputs"]
)
def test_a_switch_that_changes_the_code_changes_the_key(name):
    before = switches_digest()
    with functorch_config.patch(**{name: not getattr(functorch_config, name)}):
        assert switches_digest() != before
    assert switches_digest() == before
