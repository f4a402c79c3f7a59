"""What ``pw.compile`` gives for a module: one of the model's own kind that runs compiled."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from piecewise_core.compiled import Controls
from piecewise_core.errors import UnsupportedModule
from piecewise_core.frontend.bypasses import Bypasses, watched_methods
from piecewise_core.frontend.session import Session
from piecewise_core.runtime.hooks import call_is_forward
from piecewise_core.torch_compat.dynamo import OptimizedModule
from piecewise_core.torch_compat.modules import COMPILED_CALL

__all__ = ["CompiledModule", "compiled_module"]

if TYPE_CHECKING:

    class _Model(torch.nn.Module, Any):  # type: ignore[misc]  # the point: any model's kind
        """What type checkers know of the model: a module, of every kind, with any attributes."""

        def __getattr__(self, name: str) -> Any: ...

else:
    _Model = object


class CompiledModule(Controls, _Model):
    """What a compiled module is beside a module of the model's kind.

    ``isinstance(x, CompiledModule)`` tells compiled ones apart. Slots keep what is not the model's
    out of the attributes that both modules share.
    """

    __slots__ = ("_pw_bypasses", "_pw_make", "_pw_original", "_pw_session")

    _pw_bypasses: Bypasses
    _pw_make: Callable[..., Session]
    _pw_original: torch.nn.Module

    def __copy__(self) -> CompiledModule:
        return compiled_module(copy.copy(self._pw_original), self._pw_make)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        return compiled_module(copy.deepcopy(self._pw_original, memo), self._pw_make)

    def _pw_kind(self) -> str:
        return f"compiled {type(self).__name__}"


def compiled_module(model: torch.nn.Module, make: Callable[..., Session]) -> CompiledModule:
    """A module of the model's own kind that shares all its state and runs compiled.

    Parameters, buffers, hooks, config and attributes are the model's: what is set on one is set
    on the other. ``isinstance(result, type(model))`` holds, and its class has the name of the
    model's, which libraries look up and write to files. ``make``: session of a callable. Raises
    UnsupportedModule.
    """
    _refuse(model)
    kind = type(model)

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return _untraced(self._pw_session, args, kwargs)
        return self._pw_session(*args, **kwargs)

    names = ("__module__", "__qualname__", "__doc__")
    members = watched_methods(kind) | {name: getattr(kind, name) for name in names}
    members |= {"forward": forward, "__new__": _of_kind(kind)}
    if kind.__call__ is torch.nn.Module.__call__:
        members["__call__"] = _call
    if hasattr(kind, "get_compiled_call"):  # transformers would have torch.compile compile it again
        members["get_compiled_call"] = _itself
    made = type(kind.__name__, (CompiledModule, kind), members)
    compiled: CompiledModule = object.__new__(made)
    # One state, two faces: both modules read and write the same attributes.
    object.__setattr__(compiled, "__dict__", model.__dict__)
    object.__setattr__(compiled, "_pw_original", model)
    object.__setattr__(compiled, "_pw_make", make)
    session = make(model.forward)
    object.__setattr__(compiled, "_pw_session", session)
    object.__setattr__(compiled, "_pw_bypasses", Bypasses(session, model, set()))
    return compiled


def _itself(self: Any, compile_config: Any = None) -> Any:
    return self.__call__


def _of_kind(kind: Any) -> Callable[..., Any]:
    """What makes instances of a compiled module's class: libraries ask it for another model."""

    def another(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return kind(*args, **kwargs)  # with nothing compiled

    return another


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``nn.Module.__call__``, in one frame instead of three where there are no hooks."""
    if call_is_forward(self.__dict__) and not torch.compiler.is_compiling():
        return self._pw_session(*args, **kwargs)
    return torch.nn.Module.__call__(self, *args, **kwargs)


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="piecewise has compiled it already; compile the whole or the part"
)
def _untraced(session: Session, args: Any, kwargs: Any) -> Any:
    """Run inside a model that another compiler traces: that trace breaks here."""
    return session(*args, **kwargs)


def _refuse(model: torch.nn.Module) -> None:
    """Raise UnsupportedModule for what cannot run through its class's forward."""
    kind = type(model)
    problem = ""
    parts = [
        name for name, part in model.named_modules() if name and isinstance(part, CompiledModule)
    ]
    if isinstance(model, CompiledModule):
        problem = "it is compiled already; compile the original, with the config you want"
    elif parts:
        problem = f'its part "{parts[0]}" is compiled already; compile the whole or the part'
    elif isinstance(model, torch.jit.ScriptModule):
        problem = "it is a script module, which cannot be traced; compile the Python model"
    elif isinstance(model, OptimizedModule):
        problem = "it comes from torch.compile; compile the original (its _orig_mod)"
    elif isinstance(model, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
        problem = "it is a data-parallel wrapper; compile its .module"
    elif "forward" in vars(model):
        problem = (
            "its forward was replaced on the instance (accelerate's hooks do that); remove the "
            "hooks, or compile a submodule"
        )
    elif getattr(model, COMPILED_CALL, None) is not None:
        problem = "its .compile() was called; use a fresh model"
    if problem:
        raise UnsupportedModule(f"{kind.__name__} cannot be compiled: {problem}")
