"""Our own native code for the CPU: products of few rows, and steps called without Python between.

``native.cpp`` is built when the C++ compiler is proved, with the first compilation, and kept in the
user's cache. Compiled pieces bring it along, so that code from a store or a bundle has it too.
Where it cannot be had, torch's functions and Python do the same.
"""

from __future__ import annotations

import array
import ctypes
import functools
import itertools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from piecewise_core.building_blocks import SourceLibrary, machine_factors

__all__ = ["Native", "NativeSequence", "NativeStep", "Step", "held_still", "kernel_step"]

logger = logging.getLogger(__name__)

Step = Callable[[], Any]
"""One kernel on memory that does not move."""

_FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast"),
    *("-std=c++17", "-fopenmp", "-shared", "-fPIC"),
)
_PLACES = (8, 16, 32)
"""Arguments that ``piecewise_steps`` makes room for."""
_PLAIN = (int, torch.Tensor, torch.nn.Parameter)


class Native:
    """The library of one platform, once it is built or was brought along."""

    def __init__(self) -> None:
        self._data = b""
        self._library: Any = None

    @functools.cached_property
    def name(self) -> str:
        """Of the library's file: another for other sources, options and kinds of machine."""
        return _source("").name

    def build(self, compiler: str) -> None:
        """Have it built by the C++ compiler at ``compiler``, unless it is here."""
        if self or not sys.platform.startswith("linux"):
            return
        try:
            self._load(_source(compiler).built(os.environ).read_bytes())
        except Exception as error:  # it would only have saved time
            logger.warning("calls are slower: native.cpp cannot be built (%s)", error)

    def take_along(self) -> bytes:
        """The library; nothing where there is none."""
        return self._data

    def bring(self, files: Mapping[str, Callable[[], bytes]]) -> None:
        """Use the library that was built here, or else the one of its ``name`` among ``files``."""
        if self or not sys.platform.startswith("linux"):
            return
        try:
            built = _source("").found(os.environ)
            if built is not None:
                self._load(built.read_bytes())
            elif self.name in files:
                self._load(files[self.name]())
        except Exception as error:
            logger.debug("there is no native code of our own: %s", error)

    def function(self, name: str) -> Any:
        """``piecewise_NAME`` of the library; None where there is none."""
        return None if self._library is None else getattr(self._library, f"piecewise_{name}")

    def address(self, name: str) -> int:
        """Where that function lies."""
        return int(ctypes.cast(self.function(name), ctypes.c_void_p).value or 0)

    def together(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """``steps``, of which native ones that follow each other are one."""
        run, found = self.function("steps"), list[Step]()
        for native, group in itertools.groupby(steps, lambda step: isinstance(step, NativeStep)):
            if native and run is not None:
                found.append(NativeSequence(run, cast("list[NativeStep]", list(group))))
            else:
                found += group
        return tuple(found)

    def __bool__(self) -> bool:
        """Whether the library is here."""
        return self._library is not None

    def _load(self, data: bytes) -> None:
        # From a file of its own: one that somebody else may write to would fail under the process.
        with tempfile.TemporaryDirectory(prefix="piecewise-") as folder:
            path = Path(folder, self.name)
            path.write_bytes(data)
            library = ctypes.CDLL(str(path))
        word, address = ctypes.c_int64, ctypes.c_void_p
        library.piecewise_rows.argtypes = [*[address] * 4, *[word] * 4]
        library.piecewise_rows.restype = None
        library.piecewise_steps.argtypes = [address, word]
        library.piecewise_steps.restype = ctypes.c_char_p
        self._data, self._library = data, library


def _source(compiler: str) -> SourceLibrary:
    source = Path(__file__).with_name("native.cpp")
    factors = repr([*machine_factors().items(), *_FLAGS])
    command = (compiler, *_FLAGS)
    return SourceLibrary(source, lambda _: command, factors=factors, seconds=120)


@dataclass(frozen=True)
class NativeStep:
    """A call of the C function at ``address``, which takes addresses and 64-bit numbers.

    ``call``: the same from Python; it holds what the addresses are of.
    """

    address: int
    arguments: tuple[int, ...]
    call: Step

    def __call__(self) -> None:
        """Make the call."""
        self.call()


class NativeSequence:
    """Steps that are made by one call into C, with the interpreter's lock let go."""

    def __init__(self, run: Callable[[int, int], bytes | None], steps: list[NativeStep]) -> None:
        code = array.array("q")
        for step in steps:
            places = next(n for n in _PLACES if n >= len(step.arguments))
            unused = [0] * (places - len(step.arguments))
            code.extend([step.address, places, *step.arguments, *unused])
        self._run, self._steps, self._code = run, steps, code
        self._begin = code.buffer_info()[0]

    def __call__(self) -> None:
        """Make the calls. Raises RuntimeError with what one of them threw."""
        problem = self._run(self._begin, len(self._steps))
        if problem is not None:
            raise RuntimeError(problem.decode(errors="replace"))


def kernel_step(kernel: Callable[..., Any], args: tuple[Any, ...]) -> Step:
    """A call of one of Inductor's kernels on memory that does not move."""
    fits = len(args) <= _PLACES[-1] and all(type(a) in _PLAIN for a in args)
    address = _address(kernel) if fits else None
    if address is None:
        return functools.partial(kernel, *args)
    held = held_still(args)
    return NativeStep(address, tuple(_word(a) for a in held), functools.partial(kernel, *held))


def held_still(args: Iterable[Any]) -> tuple[Any, ...]:
    """``args`` with the memory that tensors have now: ``.data = other`` frees none of it."""
    return tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)


def _word(argument: Any) -> int:
    return argument if type(argument) is int else int(argument.data_ptr())


def _address(kernel: Any) -> int | None:
    """Where the C function behind a kernel's Python function lies; None where it is not known."""
    path = getattr(getattr(kernel, "__self__", None), "__file__", None)
    if path is None or not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        # It is loaded; its file may be gone.
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.kernel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None
