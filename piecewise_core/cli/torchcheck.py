"""Whether torch can be imported here, and whose fault it is where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

__all__ = ["torch_failure"]

_GROUP = "torch.backends"
"""Entry points that ``import torch`` loads: the backends of vendors."""


def torch_failure() -> str | None:
    """What importing torch raised, with its first cause and who brought that; None if it works.

    Of use only before anything else has tried: a second import fails in other words.
    """
    try:
        import torch  # noqa: F401
    except (Exception, SystemExit) as error:
        causes = list(_chain(error))
        first = causes[-1]
        said = f"importing torch failed with {_text(error)}"
        if first is not error:
            said += f"; the cause is {_text(first)}"
        return f"{said}; {_advice(causes)}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it came from, the first cause last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}"


def _advice(causes: list[BaseException]) -> str:
    said = " ".join(map(str, causes))
    # The longest name first: one may begin as another does.
    backends = sorted(entry_points(group=_GROUP), key=lambda entry: -len(entry.name))
    guilty = next((entry for entry in backends if entry.name in said), None)
    if guilty is None:
        return "reinstall torch"
    return (
        f"torch loads that for {_who(guilty)}: reinstall or uninstall it, or set "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0 to leave out all such backends"
    )


def _who(entry: EntryPoint) -> str:
    if entry.dist is None:
        return f"the backend {entry.name!r}"
    return (
        f"{entry.dist.metadata['Name']} {entry.dist.version}, which is its backend {entry.name!r}"
    )
