"""Every error a user of piecewise can meet, in one tree.

Each message says what happened, with the values, and what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from piecewise_core.errors.base import PiecewiseError, said
from piecewise_core.errors.building import (
    AddressChanged,
    BundleMismatch,
    CaptureFailed,
    CompileFailed,
    CompilerUnavailable,
    OpContractBroken,
    OutOfGraphMemory,
    PieceDeclined,
    RanksDisagree,
    SignatureRefused,
    StoreError,
)
from piecewise_core.errors.platforms import (
    ApiVersionMismatch,
    NoPlatform,
    PlatformConflict,
    PlatformError,
    PlatformFault,
    PluginError,
    ProbeFailed,
    ProbeInitialisedDevice,
)

__all__ = [
    "AddressChanged",
    "ApiVersionMismatch",
    "BundleMismatch",
    "CaptureFailed",
    "CompileFailed",
    "CompilerUnavailable",
    "ConfigError",
    "GradNeeded",
    "InputMismatch",
    "NoPlatform",
    "NotTraced",
    "NothingToSplit",
    "OpContractBroken",
    "OutOfGraphMemory",
    "OutOfRange",
    "PieceDeclined",
    "PiecewiseError",
    "PlanError",
    "PlatformConflict",
    "PlatformError",
    "PlatformFault",
    "PluginError",
    "ProbeFailed",
    "ProbeInitialisedDevice",
    "RanksDisagree",
    "ReportError",
    "Sealed",
    "SignatureRefused",
    "SizeBranch",
    "StoreError",
    "TorchUnsupported",
    "TraceFailed",
    "UnknownSplittingOp",
    "UnsupportedModule",
    "UnsupportedOutput",
    "UnsupportedSideEffect",
]


class TorchUnsupported(PiecewiseError, RuntimeError):
    """The torch that is installed lacks a name of its inside that piecewise needs."""


# Config and names -----------------------------------------------------------------


class ConfigError(PiecewiseError, ValueError):
    """A setting has a value that cannot work; the message names the field."""

    @property
    def field(self) -> str:
        """The Config field that is at fault, or ""."""
        return said(self, r"\bConfig\.(\w+)")


class PlanError(PiecewiseError, ValueError):
    """A histogram cannot be read, or no plan of sizes fits what it may take.

    ``path``: the file, if there is one.
    """

    path: str = ""


class ReportError(PiecewiseError, OSError):
    """A report cannot be written where it was asked for: to ``path``."""

    path: str = ""


class UnknownSplittingOp(ConfigError):
    """A splitting op's name is not that of any registered operator or torch function.

    ``names``: what was asked for. ``near``: names like it.
    """

    names: tuple[str, ...] = ()
    near: tuple[str, ...] = ()


class NothingToSplit(ConfigError):
    """Splitting ops were asked for and the traced graph holds none of them.

    ``names``: those. ``candidates``: ops that it holds.
    """

    names: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()


# Trace ----------------------------------------------------------------------------


class TraceFailed(PiecewiseError):
    """The model could not be traced to one whole graph."""


class NotTraced(PiecewiseError):
    """Something needs a traced model and no call and no examples were given yet."""


class SizeBranch(TraceFailed):
    """The model takes another path at some size, at an endpoint that the user did not list.

    ``dim``: whose size it depends on, where that is one. ``bounds``: the first and last of its
    legal sizes. ``endpoints``: those to list, where listing helps.
    """

    dim: str = ""
    bounds: tuple[int, int] | None = None
    endpoints: tuple[int, ...] = ()


class UnsupportedOutput(TraceFailed):
    """The model returns a Python object that tracing would freeze: at ``path`` in the result."""

    path: str = ""


class UnsupportedSideEffect(TraceFailed):
    """The traced code changes a Python object that outlives the call.

    ``undo``: puts back what a forward as written changes; empty where that cannot be. ``writes``:
    whether it writes to tensors that are not its own, too. ``of_arguments``: whether all such
    objects are arguments of the call. ``places``: how the names of what is changed begin.
    """

    undo: Sequence[Callable[[], None]] = ()
    writes: bool = False
    of_arguments: bool = False
    places: tuple[str, ...] = ()


class UnsupportedModule(TraceFailed):
    """The thing given to be compiled cannot be compiled in place (a script module, say)."""


# Call -----------------------------------------------------------------------------


class InputMismatch(PiecewiseError, ValueError):
    """A call's argument differs from what was traced; the message names the argument."""

    @property
    def argument(self) -> str:
        """The first argument that is at fault, with the path into it; "" where none is named."""
        return said(self, r'\bargument "([^"]+)"')


class OutOfRange(PiecewiseError, ValueError):
    """A size lies outside the bounds of its dim and ``out_of_range="error"``.

    ``dim``, ``size``, ``bounds``: the first that does, and the first and last legal size.
    ``sizes``: of all dims.
    """

    dim: str = ""
    size: int | None = None
    bounds: tuple[int, int] | None = None
    sizes: tuple[int, ...] = ()


class GradNeeded(PiecewiseError, RuntimeError):
    """A call with gradients enabled on tensors that require them; piecewise is inference only."""


class Sealed(PiecewiseError, RuntimeError):
    """A sealed model would have had to trace, compile or capture: something for ``sizes``."""

    sizes: str = ""


class Interlocked(PiecewiseError, RuntimeError):
    """Two threads would wait for each other's models for ever. Calls are served as written.

    ``lock``: what this thread would have waited for.
    """

    lock: object = None
