"""Writes to dicts and moved tensors are noticed, by the C module and without it."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from piecewise_core.runtime import dict_guard
from piecewise_core.runtime.dict_guard import CHANGED, MOVED, SAME, DictGuard
from piecewise_core.torch_compat.storages import tensor_layout_functions

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler"
)


def forget() -> None:
    sys.modules.pop("piecewise_dict_guard", None)
    dict_guard.native.cache_clear()


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Iterator[None]:
    """Nothing built yet, nothing remembered."""
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    forget()
    yield
    forget()
    gc.collect()  # Python has a handful of watchers of dicts, and each module keeps one


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Any:
    """The C module, built once for all tests that are not about building it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path_factory.mktemp("built")))
        patch.delenv("CC", raising=False)
        forget()
        module = dict_guard.native()
        forget()
    assert module is not None
    return module


@pytest.fixture(params=[pytest.param("c", marks=needs_compiler), "python"])
def way(request, monkeypatch) -> str:
    module = request.getfixturevalue("library") if request.param == "c" else None
    monkeypatch.setattr(dict_guard, "native", lambda: module)
    return request.param


def parameters(count: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(3), requires_grad=False) for _ in range(count)]


def watch(tensors, dicts=()) -> DictGuard:
    return DictGuard(list(dicts), tensors, tensors)


# Tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 200])
def test_tensors_that_stay_are_where_they_were(way, count):
    tensors = parameters(count)
    watched = watch(tensors)
    for tensor in tensors:
        tensor.add_(1)
    assert watched.check() == SAME
    assert watched.check() == SAME


@pytest.mark.parametrize("place", [0, 99, 199])
def test_one_moved_tensor_among_many_is_noticed_and_noticed_to_be_back(way, place):
    tensors = parameters(200)
    watched = watch(tensors)
    old = tensors[place].data
    tensors[place].data = torch.randn(3)
    assert watched.check() == MOVED
    watched.settle()  # which is of dicts
    assert watched.check() == MOVED
    tensors[place].data = old
    assert watched.check() == SAME


OTHERWISE: dict[str, Any] = {
    "data, transposed": lambda w: setattr(w, "data", w.data.t()),
    "transposed in place": lambda w: w.t_(),
    "fewer rows": lambda w: w.resize_(2, 4),
    "one row repeated": lambda w: setattr(w, "data", w.data[:1].expand(4, 4)),
    "one dim less": lambda w: setattr(w, "data", w.data[0]),
    "strides of dims gone": lambda w: setattr(w, "data", w.data[:, 0]),
    "one dim more": lambda w: w.unsqueeze_(0),
    "six dims": lambda w: setattr(w, "data", w.data.view(2, 2, 1, 1, 2, 2)),
    "other dtype": lambda w: setattr(w, "data", w.data.view(torch.int32)),
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_a_tensor_that_lies_otherwise_at_its_old_address_counts_as_moved(way, kind):
    tensors = [torch.randn(4, 4) for _ in range(3)]
    watched = watch(tensors)
    old, address = tensors[1].data, tensors[1].data_ptr()
    OTHERWISE[kind](tensors[1])
    assert tensors[1].data_ptr() == address
    assert watched.check() == MOVED
    tensors[1].data = old
    assert watched.check() == SAME


def test_tensors_of_many_dims_and_of_none_are_compared_whole(way):
    tensors = [torch.tensor(1.0), torch.randn([2] * 9), torch.empty(0, 3)]
    watched = watch(tensors)
    assert watched.check() == SAME
    tensors[1].data = tensors[1].data.transpose(7, 8)
    assert watched.check() == MOVED
    tensors[1].data = tensors[1].data.transpose(7, 8)
    assert watched.check() == SAME
    tensors[2].data = tensors[2].data.view(0, 3, 1)
    assert watched.check() == MOVED


@pytest.mark.parametrize("layout", ["sparse", "mkldnn"])
def test_a_tensor_that_comes_to_have_no_strides_counts_as_moved(way, layout):
    dense = torch.eye(3)
    tensors = [torch.randn(3, 3)]
    watched = watch(tensors)
    other = dense.to_sparse() if layout == "sparse" else dense.to_mkldnn()
    torch.utils.swap_tensors(tensors[0], other)
    assert watched.check() == MOVED


def test_memory_given_back_counts_as_moved(way):
    tensors = parameters(3)
    watched = watch(tensors)
    tensors[1].untyped_storage().resize_(0)
    assert watched.check() == MOVED


def test_the_tensors_live_as_long_as_the_check(way):
    tensors = parameters(2)
    seen = weakref.ref(tensors[0])
    watched = watch(tensors)
    del tensors
    gc.collect()
    assert watched.check() == SAME
    assert seen() is not None


def test_without_the_c_module_only_the_chosen_ones_are_asked(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tensors = parameters(2)
    watched = DictGuard([], tensors, tensors[:1])
    tensors[1].data = torch.randn(3)
    assert watched.check() == SAME
    tensors[0].data = torch.randn(3)
    assert watched.check() == MOVED


# Dicts ---------------------------------------------------------------------------------


def replace(held):
    held["a"] = torch.randn(3)


def delete(held):
    del held["a"]


def add(held):
    held["c"] = 1


def replace_by_an_equal_one(held):
    held["a"] = held["a"].clone()


@pytest.mark.parametrize("write", [replace, replace_by_an_equal_one, delete, add, dict.clear])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_write_to_any_dict_is_noticed_until_settled(way, write, which):
    dicts = [{"a": t, "b": None} for t in parameters(3)]
    watched = watch([], dicts)
    assert watched.check() == SAME
    write(dicts[which])
    assert watched.check() == CHANGED
    assert watched.check() == CHANGED
    watched.settle()
    assert watched.check() == SAME
    dicts[which]["d"] = 2
    assert watched.check() == CHANGED


def test_a_write_is_told_before_a_moved_tensor(way):
    (tensor,) = parameters(1)
    held = {"a": tensor}
    watched = watch([tensor], [held])
    tensor.data = torch.randn(3)
    held["b"] = 1
    assert watched.check() == CHANGED
    watched.settle()
    assert watched.check() == MOVED


def test_two_watch_one_dict_and_settle_apart(way):
    held = {"a": 1}
    first, second = watch([], [held]), watch([], [held])
    held["a"] = 2
    first.settle()
    assert first.check() == SAME
    assert second.check() == CHANGED


def test_reading_is_no_change(way):
    held = {"a": 1}
    watched = watch([], [held])
    assert dict(held) == held.copy() == {"a": 1}
    assert held.get("b") is None
    assert watched.check() == SAME


# Building it ---------------------------------------------------------------------------


def built(tmp_path):
    (library,) = (tmp_path / "native").glob("*.so")
    return library


@needs_compiler
def test_it_is_built_once(fresh, tmp_path, monkeypatch):
    assert dict_guard.native() is not None
    made = built(tmp_path).stat().st_mtime_ns
    dict_guard.native.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler needed any more
    assert dict_guard.native() is not None
    assert built(tmp_path).stat().st_mtime_ns == made


@needs_compiler
def test_it_may_be_brought_along_in_place_of_a_compiler(fresh, tmp_path, monkeypatch):
    files = dict_guard.take_along()
    assert len(files) == 1
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    dict_guard.native.cache_clear()
    dict_guard.bring({"dict_guard-of-another-python.so": b"", **files})
    assert dict_guard.native() is sys.modules["piecewise_dict_guard"]
    assert dict_guard.take_along() == files


@needs_compiler
def test_what_was_brought_along_is_no_other_program_s(fresh, tmp_path, monkeypatch):
    files = dict_guard.take_along()
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "elsewhere"))
    dict_guard.native.cache_clear()
    dict_guard.bring(files)
    assert not [*(tmp_path / "elsewhere").rglob("*.so")]


def test_without_a_module_nothing_is_taken_and_nothing_is_in_the_way(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dict_guard.take_along() == {}
    dict_guard.bring({})
    (tmp_path / "native").rmdir()
    (tmp_path / "native").write_text("a file")
    dict_guard.bring({"dict_guard-1.so": b""})


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "flipped", "no sum", "wrong sum"])
def test_a_damaged_library_is_built_again_and_never_loaded(fresh, tmp_path, damage):
    native = tmp_path / "native"
    assert dict_guard._library().built(os.environ)
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
    assert dict_guard.native() is not None
    assert dict_guard._library().found(os.environ) == library
    assert sorted(native.iterdir()) == sorted([library, digest])


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_directory_that_others_may_write_to_is_not_loaded_from(fresh, tmp_path, mode):
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(mode)
    assert dict_guard.native() is None
    assert list((tmp_path / "native").iterdir()) == []


@needs_compiler
@pytest.mark.skipif(sys.version_info < (3, 12), reason="dicts count their own writes")
def test_without_a_watcher_left_python_looks(fresh):
    taken, native = [], dict_guard.native
    while (module := native()) is not None:
        taken.append(module)
        native.cache_clear()
        assert len(taken) < 16
    watched = watch(parameters(3), [held := {"a": 1}])
    held["a"] = 2
    assert watched.check() == CHANGED


def test_a_compiler_that_fails_is_no_error(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "false --flag")
    assert dict_guard.native() is None
    assert list((tmp_path / "native").iterdir()) == []


@needs_compiler
def test_what_makes_no_sense_is_refused(fresh):
    module, stamp, functions = dict_guard.native(), bytearray(), tensor_layout_functions()
    (tensor,) = parameters(1)
    module.stamp((), stamp)
    before = module.lies(functions, (tensor,))
    for wrong in (b"", before[:-8], before + bytes(8)):
        assert module.compare((), stamp, functions, (tensor,), wrong) == MOVED
    with pytest.raises(ValueError, match="not torch's functions"):
        module.compare((), stamp, b"", (), b"")
    with pytest.raises(ValueError, match="not torch's functions"):
        module.lies(b"", ())
    with pytest.raises(ValueError, match="no stamp"):
        module.compare((), bytearray(3), functions, (), b"")
    for wrong in (None, 3, "tensor", torch.eye(2).to_sparse()):
        assert module.compare((), stamp, functions, (wrong,), before) == MOVED
        with pytest.raises(ValueError, match="0 is no tensor with strides"):
            module.lies(functions, (wrong,))
    with pytest.raises(TypeError):
        module.compare((), stamp, functions, [], b"")
    with pytest.raises(TypeError, match="not all are dicts"):
        module.stamp((1,), stamp)
