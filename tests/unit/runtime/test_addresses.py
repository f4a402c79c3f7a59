"""Moved tensors are noticed, by the C function and without it."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Iterator

import pytest
import torch

from piecewise_core.runtime import addresses

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler"
)


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Iterator[None]:
    """Nothing built yet, nothing remembered."""
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    addresses.native.cache_clear()
    yield
    addresses.native.cache_clear()


@pytest.fixture(params=[pytest.param("c", marks=needs_compiler), "python"])
def way(request, fresh, monkeypatch, tmp_path) -> str:
    if request.param == "python":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert (addresses.native() is None) == (request.param == "python")
    return request.param


def parameters(count: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(3), requires_grad=False) for _ in range(count)]


@pytest.mark.parametrize("count", [0, 1, 200])
def test_tensors_that_stay_are_where_they_were(way, count):
    tensors = parameters(count)
    check = addresses.unmoved(tensors, tensors)
    for tensor in tensors:
        tensor.add_(1)
    assert check()
    assert check()


@pytest.mark.parametrize("place", [0, 99, 199])
def test_one_moved_tensor_among_many_is_noticed_and_noticed_to_be_back(way, place):
    tensors = parameters(200)
    check = addresses.unmoved(tensors, tensors)
    old = tensors[place].data
    tensors[place].data = torch.randn(3)
    assert not check()
    tensors[place].data = old
    assert check()


def test_memory_given_back_counts_as_moved(way):
    tensors = parameters(3)
    check = addresses.unmoved(tensors, tensors)
    tensors[1].untyped_storage().resize_(0)
    assert not check()


def test_the_tensors_live_as_long_as_the_check(way):
    tensors = parameters(2)
    seen = weakref.ref(tensors[0])
    check = addresses.unmoved(tensors, tensors)
    del tensors
    gc.collect()
    assert check()
    assert seen() is not None


def test_without_the_c_function_only_the_chosen_ones_are_asked(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tensors = parameters(2)
    check = addresses.unmoved(tensors, tensors[:1])
    tensors[1].data = torch.randn(3)
    assert check()
    tensors[0].data = torch.randn(3)
    assert not check()


def built(tmp_path):
    (library,) = (tmp_path / "native").glob("*.so")
    return library


@needs_compiler
def test_it_is_built_once(fresh, tmp_path, monkeypatch):
    assert addresses.native() is not None
    made = built(tmp_path).stat().st_mtime_ns
    addresses.native.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler needed any more
    assert addresses.native() is not None
    assert built(tmp_path).stat().st_mtime_ns == made


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "flipped", "no sum", "wrong sum"])
def test_a_damaged_library_is_built_again_and_never_loaded(fresh, tmp_path, damage):
    native = tmp_path / "native"
    assert addresses._built(os.environ)
    library, whole = built(tmp_path), built(tmp_path).read_bytes()
    (digest,) = native.glob("*.sha256")
    if damage == "cut":
        library.write_bytes(whole[:100])
    elif damage == "flipped":
        library.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "no sum":
        digest.unlink()
    else:
        digest.write_text("0" * 64)
    assert addresses.native() is not None
    assert addresses._is_whole(library, digest)
    assert sorted(native.iterdir()) == sorted([library, digest])


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_directory_that_others_may_write_to_is_not_loaded_from(fresh, tmp_path, mode):
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(mode)
    assert addresses.native() is None
    assert list((tmp_path / "native").iterdir()) == []


def test_a_compiler_that_fails_is_no_error(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "false --flag")
    assert addresses.native() is None
    assert list((tmp_path / "native").iterdir()) == []


@needs_compiler
def test_what_is_no_address_is_refused(fresh):
    assert addresses.native() is not None
    module = addresses._load(addresses._built(os.environ))
    with pytest.raises(ValueError, match="one address for each"):
        module.unmoved(1, tuple(parameters(1)), b"")
    with pytest.raises(ValueError, match="no function"):
        module.unmoved(0, (), b"")
    with pytest.raises(TypeError):
        module.unmoved(1, [], b"")
