"""Operators that treat each element, or each row, by itself."""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, Value, axes_of, varies
from piecewise_core.graph.padding.rule import (
    Mixes,
    Rule,
    along,
    broadcast,
    fixed,
    fixed_tensors,
    known,
    place,
    places,
)

__all__ = ["POINTWISE", "RULES"]


def _pointwise(call: Call) -> list[Axes]:
    axes = broadcast(known(v) for v in call.tensors)
    return [axes] * len(call.results)


def _like(call: Call) -> list[Axes]:
    """Of the first argument's shape, whatever else it takes."""
    return [known(call.tensors[0])] * len(call.results)


def _per_channel(call: Call) -> list[Axes]:
    """A parameter per channel, dim 1."""
    first, *others = call.tensors
    fixed_tensors(others, "has parameters that vary")
    fixed(known(first)[1:2], "has a parameter per row")
    return [known(first)]


def _along(what: str, name: str = "dim") -> Rule:
    """Results of the first argument's shape, computed along dims that must be fixed."""

    def apply(call: Call) -> list[Axes]:
        first = call.tensors[0]
        axes = known(first)
        fixed_tensors(call.tensors[1:], what)
        fixed((axes[i] for i in places(call.get(name), first)), what)
        return [axes] * len(call.results)

    return Rule(apply)


def _scan(call: Call) -> list[Axes]:
    """Each row depends on those before it, which are a call's own."""
    first = call.tensors[0]
    axes = known(first)
    if axes and len(axes[place(call["dim"], first.dims)]) > 1:
        raise Mixes("runs along a dim that is several dims joined")
    return [axes] * len(call.results)


def _last_dims(count_of: str) -> Rule:
    """Normalisation over the last dims."""

    def apply(call: Call) -> list[Axes | None]:
        first, *others = call.tensors
        axes = known(first)
        count = len(call[count_of])
        fixed_tensors(others, "has parameters that vary")
        fixed(axes[len(axes) - count :], "normalises over it")
        statistics: list[Axes | None] = [
            (*axes[: len(axes) - count], *(() for _ in range(count)))
        ] * (len(call.results) - 1)
        return [axes, *statistics]

    return Rule(apply)


def _batch_norm(call: Call) -> list[Axes | None]:
    first, *others = call.tensors
    axes = known(first)
    if call.get("training", "no_training" not in call.op.__name__):
        fixed((a for i, a in enumerate(axes) if i != 1), "normalises over it")
    fixed(axes[1:2], "has a parameter per row")
    fixed_tensors(others, "has parameters that vary")
    return [axes, *[None] * (len(call.results) - 1)]


def _groups(call: Call) -> list[Axes | None]:
    """Normalisation of each example by itself; dim 0 is the batch's."""
    first, *others = call.tensors
    axes = known(first)
    fixed(axes[1:], "normalises over it")
    fixed_tensors(others, "has parameters that vary")
    return [axes, *[None] * (len(call.results) - 1)]


def _glu(call: Call) -> list[Axes]:
    axes, at = along(call)
    fixed(axes[at : at + 1], "halves it")
    return [(*axes[:at], axes_of(call.results[0])[at], *axes[at + 1 :])]


def _triangle(call: Call) -> list[Axes]:
    first = call["self"]
    axes = known(first)
    if any(len(a) > 1 and varies(a) for a in axes[-2:]):
        raise Mixes("counts rows of a dim that is several dims joined")
    return [axes]


def _looked_up(call: Call) -> list[Axes]:
    """Each element is looked for among others, which must be fixed."""
    given = {"input", "self", "elements"}
    values = [v for name, v in call.arguments.items() if isinstance(v, Value) and name in given]
    others = [v for v in call.tensors if v not in values]
    if len(values) != 1:
        raise Mixes("looks it up")
    fixed_tensors(others, "looks among rows of it")
    return [known(values[0])]


POINTWISE = Rule(_pointwise)
"""Each element by itself; tensors are brought to one shape."""

_SAME = Rule(_like)

RULES = {
    **dict.fromkeys(
        (
            *("to", "_to_copy", "type_as", "contiguous", "clone", "detach", "detach_", "alias"),
            *("lift", "lift_fresh", "lift_fresh_copy", "conj", "_conj", "resolve_conj", "imag"),
            *("resolve_neg", "_neg_view", "real", "fill", "fill_", "zero", "zero_", "zeros_like"),
            *("ones_like", "full_like", "empty_like", "dropout", "dropout_", "native_dropout"),
            *("feature_dropout", "alpha_dropout", "rrelu", "rrelu_with_noise", "to_dtype"),
            *("half", "float", "double", "bool", "int", "long", "requires_grad_", "_autocast_to"),
        ),
        _SAME,
    ),
    **dict.fromkeys(
        (
            *("copy", "copy_", "masked_fill_", "polar", "complex", "_prelu_kernel", "isclose"),
            *("__and__", "__or__", "__iand__", "__ior__", "floor_divide", "floor_divide_"),
            *("hardswish", "hardswish_", "log_sigmoid", "expand_as"),
        ),
        POINTWISE,
    ),
    "prelu": Rule(_per_channel),
    **dict.fromkeys(
        ("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax"),
        _along("takes a softmax over it"),
    ),
    **dict.fromkeys(("sort", "argsort"), _along("sorts it")),
    **dict.fromkeys(("flip", "roll"), _along("reorders it", "dims")),
    **dict.fromkeys(
        ("cumsum", "cumsum_", "cumprod", "cumprod_", "logcumsumexp", "cummax", "cummin"),
        Rule(_scan),
    ),
    "layer_norm": _last_dims("normalized_shape"),
    "native_layer_norm": _last_dims("normalized_shape"),
    "rms_norm": _last_dims("normalized_shape"),
    "_fused_rms_norm": _last_dims("normalized_shape"),
    **dict.fromkeys(
        (
            *("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"),
            "_native_batch_norm_legit_no_training",
        ),
        Rule(_batch_norm),
    ),
    **dict.fromkeys(("group_norm", "native_group_norm", "instance_norm"), Rule(_groups)),
    "glu": Rule(_glu),
    **dict.fromkeys(("tril", "tril_", "triu", "triu_"), Rule(_triangle)),
    **dict.fromkeys(("bucketize", "searchsorted", "isin"), Rule(_looked_up)),
}
