"""Every error a user of piecewise can meet, in one tree.

Each message says what happened, with the values, and what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    "ReportError",
    "Sealed",
    "SizeBranch",
    "StoreError",
    "TorchUnsupported",
    "TraceFailed",
    "UnknownSplittingOp",
    "UnsupportedModule",
    "UnsupportedOutput",
    "UnsupportedSideEffect",
]


class PiecewiseError(Exception):
    """Base of every error that piecewise raises on purpose."""


class TorchUnsupported(PiecewiseError, RuntimeError):
    """The torch that is installed lacks a name of its inside that piecewise needs."""


# Config and names -----------------------------------------------------------------


class ConfigError(PiecewiseError, ValueError):
    """A setting has a value that cannot work; the message names the field."""


class PlanError(PiecewiseError, ValueError):
    """A histogram cannot be read, or no plan of sizes fits what it may take."""


class ReportError(PiecewiseError, OSError):
    """A report cannot be written where it was asked for."""


class UnknownSplittingOp(ConfigError):
    """A splitting op's name is not that of any registered operator or torch function."""


class NothingToSplit(ConfigError):
    """Splitting ops were asked for and the traced graph holds none of them."""


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
    """The model returns a Python object that tracing would freeze."""


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
    """A sealed model would have had to trace, compile or capture."""


class Interlocked(PiecewiseError, RuntimeError):
    """Two threads would wait for each other's models for ever. Calls are served as written.

    ``lock``: what this thread would have waited for.
    """

    lock: object = None


# Compile and store ----------------------------------------------------------------


class CompileFailed(PiecewiseError, RuntimeError):
    """A compiler failed on one piece; the message names the piece, range and compiler."""


class CompilerUnavailable(CompileFailed):
    """The compiler's own tools are missing (no C++ compiler, a noexec directory)."""


class PieceDeclined(PiecewiseError):
    """Raised by a compiler's ``compile``: it leaves this piece alone, which then runs as written.

    The text says why, for a person: it is logged once per piece and range, and in explain().
    """


class OpContractBroken(PiecewiseError, RuntimeError):
    """An operator's fake kernel promised another shape, stride or dtype than its real one gave.

    Or compiled code did what it must not: it wrote to the model's weights.
    """


class StoreError(PiecewiseError):
    """The compile store cannot be used as configured."""


class BundleMismatch(PiecewiseError):
    """A bundle does not fit this model, torch, device or platform."""


# Capture --------------------------------------------------------------------------


class CaptureFailed(PiecewiseError, RuntimeError):
    """A static graph could not be captured."""


class AddressChanged(PiecewiseError, RuntimeError):
    """An input declared static moved since capture."""


class OutOfGraphMemory(CaptureFailed):
    """The device ran out of memory while capturing."""


# Platforms ------------------------------------------------------------------------


class PlatformError(PiecewiseError):
    """Base of everything that goes wrong with platforms and their plugins."""


class NoPlatform(PlatformError):
    """No installed platform fits the request."""


class PlatformConflict(PlatformError):
    """Two plugins claim one name or one device and nothing decides between them."""


class PluginError(PlatformError):
    """A plugin could not be imported, raised in a hook, or declared something malformed."""


class PlatformFault(PlatformError):
    """A method of a platform raised at run time; its cause is what was raised.

    ``by``: distribution and version that brought the platform. ``method``: "GraphDriver.replay".
    """

    def __init__(self, message: str, *, by: str = "", method: str = "") -> None:
        super().__init__(message)
        self.by = by
        self.method = method


class ApiVersionMismatch(PlatformError):
    """A plugin was written for a Protocol version that this core does not serve."""


class ProbeFailed(PlatformError):
    """A platform's ``probe`` raised; probes must report, never raise."""


class ProbeInitialisedDevice(PlatformError):
    """A platform's ``probe`` initialised its device, which would break a later fork."""
