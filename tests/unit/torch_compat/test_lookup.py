"""A private name that this torch lacks is named, with the torch and the tested range."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from piecewise_core.errors import CompileFailed, TorchUnsupported, TraceFailed
from piecewise_core.torch_compat import versions
from piecewise_core.torch_compat.lookup import needed, optional, reader


def test_a_function_that_a_module_of_torch_lacks_is_named():
    with (
        pytest.raises(TorchUnsupported, match=r"has no torch\._dynamo\.utils\.nothing_like_it,"),
        needed(),
    ):
        from torch._dynamo.utils import nothing_like_it  # noqa: F401


def test_a_module_that_torch_lacks_is_named():
    with pytest.raises(TorchUnsupported, match=r"has no torch\._nothing_like_it,"), needed():
        import torch._nothing_like_it  # noqa: F401


def test_an_attribute_that_a_module_a_class_or_an_object_of_torch_lacks_is_named():
    with pytest.raises(TorchUnsupported, match=r"has no torch\._C\._nothing,"), needed():
        torch._C._nothing  # noqa: B018
    with pytest.raises(TorchUnsupported, match=r"has no torch\.Tensor\._nothing,"), needed():
        torch.Tensor._nothing  # noqa: B018
    with pytest.raises(TorchUnsupported, match=r"has no torch\.Tensor\._nothing,"), needed():
        torch.zeros(1)._nothing  # noqa: B018
    with pytest.raises(TorchUnsupported, match=r"OpOverload\._nothing,"):
        reader(torch.ops.aten.add.Tensor, "_nothing")


def test_the_error_says_which_torch_is_there_and_which_are_tested():
    with pytest.raises(TorchUnsupported) as caught, needed():
        torch._C._nothing  # noqa: B018
    assert f"torch {torch.__version__} " in str(caught.value)
    assert f"torch {versions.tested_range()}" in str(caught.value)
    assert not isinstance(caught.value, (TraceFailed, CompileFailed))


def test_what_is_not_torchs_is_raised_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="nobody_has_this"), needed():
        import nobody_has_this  # noqa: F401
    with pytest.raises(AttributeError, match="nothing"), needed():
        ModuleType("mine").nothing  # noqa: B018


def test_what_can_be_done_without_is_the_default_where_it_is_missing():
    assert optional("_C._nothing") is None
    assert optional("_nothing._like._it", 3) == 3
    assert optional("_C._is_any_autocast_enabled") is torch._C._is_any_autocast_enabled


def test_this_torch_is_in_the_tested_range():
    low, high = (tuple(map(int, version.split("."))) for version in versions.TESTED)
    assert low <= tuple(map(int, torch.__version__.split(".")[:2])) <= high


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("torch._ops", "OpOverloadPacket"),
        ("torch.utils._sympy.value_ranges", "bound_sympy"),
        ("torch._dynamo.convert_frame", "compile_frame"),
        ("torch.nn.modules.module", "_global_forward_hooks"),
    ],
)
def test_compiling_with_a_torch_that_lacks_a_name_says_which(owner, name, fresh_processes):
    code = f"""
import importlib, sys
import torch, torch._dynamo
owner = importlib.import_module({owner!r})
kept = vars(owner).pop({name!r})
import piecewise_core as pw
for _ in range(2):
    try:
        pw.compile(torch.nn.Linear(2, 2), pw.Config(compiler="eager"))(torch.zeros(3, 2))
    except pw.errors.TorchUnsupported as error:
        print(error)
"""
    done = fresh_processes.run(code)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert f"torch {torch.__version__} has no {owner}.{name}," in first


@pytest.mark.inductor
def test_a_name_that_only_a_compilation_needs_is_no_failure_of_the_compiler(fresh_processes):
    code = """
import torch
import torch._inductor.runtime.cache_dir_utils as places
import piecewise_core as pw
del places.cache_dir
try:
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    pw.compile(model, pw.Config(compiler="inductor"))(torch.zeros(3, 2))
except pw.errors.PiecewiseError as error:
    print(type(error).__name__, error)
"""
    done = fresh_processes.run(code)
    assert done.returncode == 0, done.stderr
    said = f"TorchUnsupported torch {torch.__version__} has no torch._inductor"
    assert done.stdout.startswith(f"{said}.runtime.cache_dir_utils.cache_dir,"), done.stdout
