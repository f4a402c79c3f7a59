"""Dynamo, which traces; known in 2.11 to 2.13, alike in both, no fallback.

``get_frame`` and ``compile_frame`` are what ``fullgraph_capture`` is made of. They are used in its
place because side effects can be read only while the compiler runs. In 2.11 a convolution on a CPU
asks for its sizes before it takes oneDNN; later it need not.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from piecewise_core.afterfork import after_fork
from piecewise_core.torch_compat.libraries import has_mkldnn, mkldnn_is_on, set_mkldnn
from piecewise_core.torch_compat.lookup import needed
from piecewise_core.torch_compat.modules import STATIC_MARK

with needed():
    import torch._dynamo as dynamo
    from torch._dynamo import OptimizedModule, convert_frame
    from torch._dynamo import config as dynamo_config
    from torch._dynamo.comptime import comptime
    from torch._dynamo.convert_frame import _get_frame as get_frame
    from torch._dynamo.convert_frame import compile_frame, get_compile_id
    from torch._dynamo.exc import TorchDynamoException
    from torch._dynamo.source import AttrSource, ConstantSource, NNModuleSource
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.utils import dynamo_timed, get_metrics_context
    from torch._dynamo.variables import ConstDictVariable, LazyVariableTracker, TensorVariable
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew
    from torch._dynamo.variables.tensor import SymNodeVariable
    from torch.fx.experimental import _config as fx_config

__all__ = [
    "AttrSource",
    "AttributeMutationNew",
    "ConstDictVariable",
    "ConstantSource",
    "FunctionsSetting",
    "InstructionTranslator",
    "LazyVariableTracker",
    "NNModuleSource",
    "OptimizedModule",
    "SymNodeVariable",
    "TensorVariable",
    "ValueMutationNew",
    "compile_frame",
    "compile_lock",
    "comptime",
    "contents_variable",
    "dynamo_config",
    "dynamo_timed",
    "fx_config",
    "get_compile_id",
    "get_frame",
    "get_metrics_context",
    "holds_compile_lock",
    "is_kept_out",
    "is_marked_static",
    "mark_dynamic",
    "modified_variables",
    "numbers_are_data",
    "oblivious_sizes",
    "place_of",
    "source_name",
    "symbols_at",
    "trace_errors",
    "traced_names",
    "without_size_choices",
]

compile_lock = after_fork.frees(convert_frame.compile_lock)
"""Dynamo's own lock: neither it nor Inductor may run in two threads at once.

A forked child has it free, which torch itself does not see to.
"""


def holds_compile_lock() -> bool:
    """Whether this thread has ``compile_lock``; yes where that cannot be told."""
    return bool(getattr(compile_lock, "_is_owned", lambda: True)())


trace_errors = (TorchDynamoException,)
"""What Dynamo raises when it cannot trace to one graph."""


def is_marked_static(placeholder: torch.fx.Node) -> bool:
    """Whether an input of a Dynamo graph is a parameter, a buffer, or marked by its maker.

    Such a tensor rarely moves. No guard asks for its address, and seldom one for its identity.
    """
    described = placeholder.meta.get("tensor_dict") or {}
    return bool(described.get(STATIC_MARK))


class FunctionsSetting(set[Any]):
    """A set of functions as one of Dynamo's settings.

    For its log torch 2.11 sorts a copy of every setting that is a set, which functions do not bear,
    and logs that as an error with each trace. The copy is empty.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> set[Any]:
        return set()


@contextlib.contextmanager
def oblivious_sizes() -> Iterator[None]:
    """Sizes are ordinary inside: no symbol is specialised to 0 or 1, or to batches below 16.

    Enter it under ``compile_lock`` only.
    """
    config: Any = fx_config  # its functions are put there at import, unseen by type checkers
    with needed():
        patch = config.patch(backed_size_oblivious=True)
    with after_fork.leaves(patch), after_fork.leaves(_one_convolution()):
        yield


@contextlib.contextmanager
def _one_convolution() -> Iterator[None]:
    """Nobody asks whether a convolution has the 16 rows that NNPACK is used from.

    Where oneDNN is on, it takes those at run time, so the answer would change nothing.
    """
    if not (has_mkldnn and mkldnn_is_on()):
        yield
        return
    with torch.backends.nnpack.flags(enabled=False):
        yield


@contextlib.contextmanager
def without_size_choices() -> Iterator[None]:
    """In torch 2.11 a convolution asks for sizes that only choose its kernel, unless oneDNN is off.

    For the trace alone: calls, and a compiler's choice of kernels, have it as it was.
    """
    if torch.__version__ >= "2.12" or not mkldnn_is_on():
        yield
        return
    set_mkldnn(False)
    try:
        yield
    finally:
        set_mkldnn(True)


@contextlib.contextmanager
def symbols_at(places: Iterable[str]) -> Iterator[None]:
    """Whole numbers at ``places``, by Dynamo's names for them, are symbols inside.

    In 2.13 what is marked so and compared raises where other numbers are constants by that setting.
    """
    listed = ",".join(f"{re.escape(place)}$" for place in sorted(places))
    if not listed:
        yield
        return
    config: Any = torch.compiler.config  # its functions are put there at import
    marked = config.patch(dynamic_sources=listed)
    others = dynamo_config.patch(specialize_int=False)
    with after_fork.leaves(marked), after_fork.leaves(others):
        yield


def mark_dynamic(tensor: torch.Tensor, dim: int, low: int, high: int) -> None:
    """Make ``dim`` of an example symbolic, ``low`` to ``high`` inclusive."""
    dynamo.mark_dynamic(tensor, dim, min=low, max=high)


def is_kept_out(function: Any) -> bool:
    """Whether ``torch.compiler.disable`` keeps a function from being traced."""
    return bool(getattr(function, "_torchdynamo_disable", False))


def numbers_are_data(_context: Any) -> None:
    """Called by ``comptime`` first of all: no number is taken for granted of a tensor.

    Dynamo knows what ``item()`` of a whole number, or a float64, in a tensor of the CPU without
    dims gave at the trace, and guards that. Nobody asks its guards here.
    """
    with needed():
        tx: Any = InstructionTranslator.current_tx()
        tx.output.tracing_context.fake_mode.fake_tensor_converter.export = True


def place_of(error: BaseException) -> str:
    """``file:line`` of the user's code that Dynamo stopped at, or ""."""
    stack = getattr(error, "real_stack", None) or ()
    frames = [f for f in stack if not f.filename.startswith("<piecewise")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def source_name(source: Any) -> str:
    """Dynamo's name for where a value comes from: an attribute, or a method in some builds."""
    return str(source.name if isinstance(source.name, str) else source.name())


def traced_names(output: Any) -> list[str]:
    """Dynamo's names for all that the traced code read, of what is one object too; none in 2.11."""
    found = []
    for source in getattr(output.root_tracer, "traced_sources", ()):
        with contextlib.suppress(NotImplementedError):  # Dynamo made it up: it has no name
            found.append(source_name(source))
    return found


def contents_variable(var: Any) -> Any:
    """What stands for the contents of a dict; of an OrderedDict or a defaultdict that is a second.

    One of 2.11 has none.
    """
    return getattr(var, "_base_vt", None) or var


def modified_variables(effects: Any) -> Iterable[Any]:
    """What stands for the objects that the traced code changes, in Dynamo's list ``effects``."""
    with needed():
        found: Iterable[Any] = effects._get_modified_vars()
    return found
