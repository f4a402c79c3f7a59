"""What goes wrong where code and graphs are made, kept and loaded."""

from __future__ import annotations

from piecewise_core.errors.base import PiecewiseError

__all__ = [
    "AddressChanged",
    "BundleMismatch",
    "CaptureFailed",
    "CompileFailed",
    "CompilerUnavailable",
    "OpContractBroken",
    "OutOfGraphMemory",
    "PieceDeclined",
    "RanksDisagree",
    "SignatureRefused",
    "StoreError",
]


class CompileFailed(PiecewiseError, RuntimeError):
    """A compiler failed on one piece.

    ``piece``: its name, ``source``: its line, ``sizes``: what it was compiled for, ``compiler``.
    """

    piece: str = ""
    source: str = ""
    sizes: str = ""
    compiler: str = ""


class CompilerUnavailable(CompileFailed):
    """The compiler's own tools are missing (no C++ compiler, a noexec directory)."""


class PieceDeclined(PiecewiseError):
    """Raised by a compiler's ``compile``: it leaves this piece alone, which then runs as written.

    The text says why, for a person: it is logged once per piece and range, and in explain().
    """


class OpContractBroken(PiecewiseError, RuntimeError):
    """An operator's fake kernel promised another shape, stride or dtype than its real one gave.

    Or compiled code did what it must not: it wrote to the model's weights. ``op``: what did it.
    """

    op: str = ""


class StoreError(PiecewiseError):
    """The compile store cannot be used as configured."""


class SignatureRefused(StoreError):
    """With ``trust="signed"``: what no trusted key signed, or none that holds today.

    ``kind``: "unsigned", "untrusted" (signed by a key that is not trusted, or expired), "forged".
    """

    kind: str = "untrusted"


class BundleMismatch(PiecewiseError):
    """A bundle, at ``path``, does not fit this model, torch, device or platform.

    ``differs``: a line for each thing that does not.
    """

    path: str = ""
    differs: tuple[str, ...] = ()


class CaptureFailed(PiecewiseError, RuntimeError):
    """A static graph could not be captured."""


class AddressChanged(PiecewiseError, RuntimeError):
    """An input declared static moved since capture: ``arguments``."""

    arguments: tuple[str, ...] = ()


class OutOfGraphMemory(CaptureFailed):
    """The device ran out of memory while capturing."""


class RanksDisagree(PiecewiseError, RuntimeError):
    """Processes that serve one model together would do different things.

    ``rank``: the one that differs or does not answer. ``difference``: in what.
    """

    def __init__(self, message: str, *, rank: int = 0, difference: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.difference = difference
