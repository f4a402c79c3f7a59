"""What serves which sizes right now: as data, and as a table to read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["State", "Status", "TargetStatus"]

State = Literal["ready", "compiling", "pending", "failed", "as_written"]


@dataclass(frozen=True)
class TargetStatus:
    """One target.

    ``kind``: as calls are counted, or ``untraced`` for sizes of which nothing is known yet.
    ``sizes``: that it serves; of ``replayed`` ones, those that its graphs have. ``reason``: why it
    is not ready, or what of it runs as written. ``hits``: calls that it served, of ``real_rows``,
    to which padding added ``padded_rows``. ``seconds``: that compiling, or loading, its code took.
    ``waits``: whether a call of it would have to wait for a trace, compilation or capture, or
    fail. ``form``: the place of its calls among the forms; -1 for all. ``spans``: the first and
    last of its sizes, in each dim.
    """

    kind: str
    sizes: str
    state: State
    reason: str = ""
    hits: int = 0
    real_rows: int = 0
    padded_rows: int = 0
    seconds: float = 0.0
    waits: bool = False
    form: int = 0
    spans: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.sizes}: {self.state}"]
        parts += [f"{self.hits} calls"] if self.hits else []
        parts += [f"{self.padded_rows} rows of padding"] if self.padded_rows else []
        parts += [f"compiled in {self.seconds:.2f} s"] if self.seconds >= 0.005 else []
        text = ", ".join(parts)
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(frozen=True)
class Status:
    """Every target of a model, and whether it is ``ready``.

    It is once no call in bounds has to wait for a trace, a compilation or a capture: not before it
    was called or warmed up. ``forms``: forms of calls so far. ``advice``: where calls are of other
    sizes than those that are captured. ``second_level``: where that of the compile store is, and
    what it does, or "".
    """

    ready: bool
    targets: tuple[TargetStatus, ...]
    forms: int = 1
    advice: tuple[str, ...] = ()
    second_level: str = ""

    def of(self, state: State) -> tuple[TargetStatus, ...]:
        """The targets in a state."""
        return tuple(target for target in self.targets if target.state == state)

    def to_json(self) -> str:
        """The status as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        states = [target.state for target in self.targets]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        lines = [f"{'ready' if self.ready else 'not ready'}: {counts or 'nothing traced yet'}"]
        several = self.forms > 1
        lines += [
            f"  {f'form {t.form}, ' if several and t.form >= 0 else ''}{t}" for t in self.targets
        ]
        lines += [f"second level of the store: {self.second_level}"] if self.second_level else []
        return "\n".join([*lines, *(f"advice: {text}" for text in self.advice)])
