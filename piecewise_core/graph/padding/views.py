"""Operators that give elements other dims, or pick whole rows by their place."""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import (
    Axes,
    Axis,
    axes_of,
    joined,
    regroup,
    total,
    varies,
)
from piecewise_core.graph.padding.rule import (
    Mixes,
    Rule,
    agreed,
    along,
    broadcast,
    fewest,
    fixed,
    known,
    place,
    places,
    prefix,
)

__all__ = ["RULES"]

_TORN = "gives rows another place: a dim is not kept whole"


def _view(call: Call) -> list[Axes]:
    found = regroup(known(call["self"]), call.results[0])
    if found is None:
        raise Mixes(_TORN)
    return [found]


def _swapped(call: Call) -> list[Axes]:
    value = call["self"]
    axes = list(known(value))
    if len(axes) > 1:
        a = place(call.get("dim0", call.get("axis0", -2)), len(axes))
        b = place(call.get("dim1", call.get("axis1", -1)), len(axes))
        axes[a], axes[b] = axes[b], axes[a]
    return [tuple(axes)]


def _permuted(call: Call) -> list[Axes]:
    axes = known(call["self"])
    return [tuple(axes[i] for i in places(call["dims"], call["self"]))]


def _unsqueezed(call: Call) -> list[Axes]:
    axes = known(call["self"])
    at = place(call["dim"], len(axes) + 1)
    return [(*axes[:at], (), *axes[at:])]


def _squeezed(call: Call) -> list[Axes]:
    value = call["self"]
    axes = known(value)
    listed = places(call.get("dim"), value)
    if "dim" in call.arguments and call["dim"] == ():
        listed = []
    return [tuple(a for i, a in enumerate(axes) if a != () or i not in listed)]


def _expanded(call: Call) -> list[Axes]:
    axes = known(call["self"])
    shape = call.results[0]
    new = len(shape) - len(axes)
    made = [axes_of((size,))[0] for size in shape]
    for i, axis in enumerate(axes):
        if axis != ():
            made[new + i] = axis
    return [tuple(made)]


def _repeated(call: Call) -> list[Axes]:
    axes = known(call["self"])
    repeats = call["repeats"]
    axes = ((),) * (len(repeats) - len(axes)) + tuple(axes)
    return [tuple(joined(((r,), a)) for r, a in zip(repeats, axes, strict=True))]


def _stretched(call: Call) -> list[Axes]:
    """Each row several times, side by side."""
    count = call.get("repeats")
    if call.get("dim") is None or not isinstance(count, int):
        raise Mixes("repeats rows by counts that it reads, or of a tensor that it flattens")
    axes, at = along(call)
    return [(*axes[:at], joined((axes[at], (count,))), *axes[at + 1 :])]


def _selected(call: Call) -> list[Axes]:
    axes, at = along(call)
    index = call["index"]
    if varies(axes[at]) and (len(axes[at]) > 1 or not 0 <= index < fewest(axes[at], call)):
        raise Mixes("picks a row by its place from the end, or one that small calls lack")
    return [(*axes[:at], *axes[at + 1 :])]


def _sliced(call: Call) -> list[Axes]:
    axes, at = along(call)
    start = call.get("start") or 0
    if varies(axes[at]) and call.get("step", 1) != 1:
        raise Mixes("takes every other row of it")
    cut = prefix(axes[at], call.results[0][at], start, call)
    return [(*axes[:at], cut, *axes[at + 1 :])]


def _pieces(call: Call) -> list[Axes]:
    axes, at = along(call, 0)
    if varies(axes[at]) and len(call.results) > 1:
        raise Mixes("takes it apart")
    if varies(axes[at]):
        return [axes]
    return [(*axes[:at], axes_of((r[at],))[0], *axes[at + 1 :]) for r in call.results]


def _unbound(call: Call) -> list[Axes]:
    axes, at = along(call, 0)
    fixed(axes[at : at + 1], "takes it apart")
    return [(*axes[:at], *axes[at + 1 :])] * len(call.results)


def _concatenated(call: Call) -> list[Axes]:
    empty = (axes_of((0,)),)
    values = [v for v in call.tensors if known(v) not in empty]  # a relic that joins any shape
    if not values:
        return [known(call.tensors[0])]
    at = place(call["dim"], values[0].dims)
    parts = [known(v)[at] for v in values]
    rest = broadcast([*known(v)[:at], (), *known(v)[at + 1 :]] for v in values)  # type: ignore[misc]
    if len(values) > 1:
        fixed(parts[:-1], "puts rows behind it")
        if len(parts[-1]) > 1:
            fixed(parts[-1:], "puts rows before it")
    whole = parts[0] if len(parts) == 1 else axes_of((call.results[0][at],))[0]
    return [(*rest[:at], whole, *rest[at + 1 :])]


def _stacked(call: Call) -> list[Axes]:
    values = [known(v) for v in call.tensors]
    axes = tuple(agreed(axis) for axis in zip(*values, strict=True))
    at = place(call["dim"], len(axes) + 1)
    return [(*axes[:at], axes_of((len(values),))[0], *axes[at:])]


def _diagonal(call: Call) -> list[Axes]:
    value = call["self"]
    axes = known(value)
    a, b = (place(call[name], value.dims) for name in ("dim1", "dim2"))
    plain = axes[a] == axes[b] and len(axes[a]) <= 1 and call["offset"] == 0
    if not plain and varies((axes[a], axes[b])):
        raise Mixes("takes a diagonal of it")
    kept: list[Axis] = [axis for i, axis in enumerate(axes) if i not in (a, b)]
    return [(*kept, axes_of((call.results[0][-1],))[0])]


def _padded(call: Call) -> list[Axes]:
    """Constant padding: behind rows of a call's own it would stand behind others' too."""
    value, pads = call["self"], call["pad"]
    axes = list(known(value))
    for i in range(len(pads) // 2):
        at = len(axes) - 1 - i
        before, behind = pads[2 * i], pads[2 * i + 1]
        size = call.results[0][at]
        plain = behind == 0 and not varies(before) and before >= 0 and len(axes[at]) <= 1
        if not plain and varies((axes[at], before, behind)):
            raise Mixes("puts elements behind its rows")
        if total(axes[at]) != size:
            axes[at] = axes_of((size,))[0]
    return [tuple(axes)]


def _as_complex(call: Call) -> list[Axes]:
    return [known(call["self"])[:-1]]


def _as_real(call: Call) -> list[Axes]:
    return [(*known(call["self"]), (2,))]


def _retyped(call: Call) -> list[Axes]:
    """The same bytes as another dtype, which may make more or fewer elements of the last dim."""
    axes = known(call["self"])
    if axes and total(axes[-1]) != call.results[0][-1]:
        fixed(axes[-1:], "reads its bytes otherwise")
        axes = (*axes[:-1], axes_of(call.results[0][-1:])[0])
    return [axes]


def _view_or_retyped(call: Call) -> list[Axes]:
    return _retyped(call) if "dtype" in call.arguments else _view(call)


_SHAPED = frozenset({"size", "shape", "sizes", "implicit"})
_VIEW = Rule(_view, _SHAPED)
_PIECES = Rule(_pieces)

RULES = {
    "view": Rule(_view_or_retyped, _SHAPED),
    **dict.fromkeys(
        ("_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "ravel", "view_as"),
        Rule(_view, _SHAPED | {"stride"}),
    ),
    "reshape_as": _VIEW,
    **dict.fromkeys(
        ("transpose", "transpose_", "swapaxes", "swapdims", "t", "t_", "mT", "adjoint"),
        Rule(_swapped),
    ),
    "numpy_T": Rule(lambda call: [known(call["self"])[::-1]]),
    "permute": Rule(_permuted),
    **dict.fromkeys(("unsqueeze", "unsqueeze_"), Rule(_unsqueezed)),
    **dict.fromkeys(("squeeze", "squeeze_"), Rule(_squeezed)),
    **dict.fromkeys(("expand", "broadcast_to"), Rule(_expanded, _SHAPED)),
    "repeat": Rule(_repeated, frozenset({"repeats"})),
    "repeat_interleave": Rule(_stretched, frozenset({"output_size"})),
    "select": Rule(_selected),
    "slice": Rule(_sliced, frozenset({"end"})),
    "narrow": Rule(_sliced, frozenset({"length"})),
    **dict.fromkeys(
        (
            *("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"),
            *("unsafe_chunk", "tensor_split"),
        ),
        _PIECES,
    ),
    "unbind": Rule(_unbound),
    **dict.fromkeys(("cat", "concat", "concatenate"), Rule(_concatenated)),
    "stack": Rule(_stacked),
    "diagonal": Rule(_diagonal),
    "constant_pad_nd": Rule(_padded),
    "view_as_complex": Rule(_as_complex),
    "view_as_real": Rule(_as_real),
}
