"""Sizes that depend on data: what has them runs as written, the rest as ever."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import piecewise_core as pw
from piecewise_core.errors import SizeBranch, TraceFailed
from piecewise_core.testing import SimulatedPlatform

_POSITIVE = torch.tensor([[1.0, -1.0, 2.0], [3.0, 4.0, -5.0], [-1.0, 1.0, 0.5]])
_CALLS = (_POSITIVE, -torch.ones(3, 3), torch.eye(3), torch.ones(4, 3), torch.eye(5, 3))


def nonzero(x):
    return x.nonzero()


def selected(x):
    return x[x > 0]


def sizes(x):
    kept = x[x > 0]
    return kept, kept.shape[0], 2 * kept.shape[0] + 1


def counts(x):
    return torch.bincount((x > 0).long().flatten())


def values_and_places(x):
    return torch.unique(x, return_inverse=True, return_counts=True)


def repeated(x):
    return torch.repeat_interleave(x, (x[:, 0] > 0).long() + 1, dim=0)


def prefix(x):
    return x[: (x[:, 0] > 0).sum().item()] * 2


def made(x):
    return torch.zeros((x > 0).sum().item(), 2)


def listed(x):
    a, b = (x[:2, 0] > 0).long().tolist()
    return torch.ones(a + 1, b + 2)


def scaled(x):
    return x * x.sum().item()


def two_sizes(x):
    above, below = x[x > 0], x[x <= 0]
    return torch.cat([above, below]), above.shape[0] + below.shape[0]


def together(x):
    return x[x > 0] + (x * 2)[x > 0]


def parts(x):
    return torch.tensor_split(x, (x[:, 0] > 0).sum().reshape(1).cpu())


def summed(x):
    return torch.relu(x) + x[x > 0].sum()


FUNCTIONS = (nonzero, selected, sizes, counts, values_and_places, repeated, prefix, made, listed,
             scaled, two_sizes, together, parts, summed)  # fmt: skip


def compiled(fn, **settings):
    config = {"dynamic": {"x": {0: pw.Dim("rows", 1, 16)}}, "compiler": "eager"}
    platform = settings.pop("platform", "cpu")
    return pw.compile(fn, pw.Config(**{**config, **settings}), platform=platform)


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_any_number_of_results_is_as_without_piecewise(fn):
    if fn is values_and_places and _counts_of_unique() is not torch.int64:
        pytest.skip("this torch's fake kernel of unique says that counts are floats")
    served = compiled(fn)
    for x in _CALLS:
        torch.testing.assert_close(served(x), fn(x), rtol=0, atol=0)
    # Torch 2.11 guards on each size of a list's numbers: a trace for each.
    assert served.stats().graphs == 1 or (fn is listed and torch.__version__ < "2.12")


def _counts_of_unique():
    shapes = ShapeEnv(allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(shape_env=shapes):
        return torch.unique(torch.zeros(3), return_counts=True)[1].dtype


@pytest.mark.parametrize("platform", [SimulatedPlatform(), "cpu"], ids=["simulated", "cpu"])
@pytest.mark.parametrize("fn", [nonzero, sizes, prefix, scaled, summed])
def test_captured_sizes_give_the_same_for_other_data(fn, platform):
    served = compiled(fn, platform=platform, graph_mode="piecewise", capture_sizes=[3, 4])
    for x in (*_CALLS, *_CALLS):
        torch.testing.assert_close(served(x), fn(x), rtol=0, atol=0)
    assert served.stats().calls["replayed"] == 8


@pytest.mark.inductor
def test_inductor_compiles_what_lies_around():
    served = compiled(summed, compiler="inductor")
    for x in _CALLS:
        torch.testing.assert_close(served(x), summed(x))


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        kept = (hidden[:, 0] > 0).nonzero().squeeze(1)
        hidden = hidden + hidden[kept].sum(0)
        q = hidden[None, None]
        return self.last(torch.nn.functional.scaled_dot_product_attention(q, q, q)[0, 0])


def test_once_sizes_are_the_dims_again_pieces_are_captured():
    torch.manual_seed(0)
    model = Decoder().requires_grad_(False)
    served = compiled(
        model,
        platform=SimulatedPlatform(),
        capture_sizes=[3],
        splitting_ops=["torch.nn.functional.scaled_dot_product_attention"],
    )
    for _ in range(3):
        for x in _CALLS[:3]:
            torch.testing.assert_close(served(x), model(x))
    assert served.stats().calls["replayed"] == 9


class Kept(Decoder):
    """A view of a graph's memory, read behind later graphs, and returned."""

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        kept = hidden[: (x[:, 0] > 0).sum().item()]
        later = torch.sin(hidden.clone())
        for _ in range(2):
            later = torch.relu(torch.nn.functional.softmax(torch.relu(later + 1), -1) * 3)
        return self.last(later) + kept.sum(), kept


class Written(Decoder):
    """Writes to a graph's memory and to its input, as far as data says."""

    def forward(self, x):
        hidden, count = torch.relu(self.first(x)), (x[:, 0] > 0).sum().item()
        hidden[:count].add_(1)
        x[:count] = 0
        return self.last(hidden), x + 1


class Experts(Decoder):
    """Each row goes to one of two, as data says."""

    def forward(self, x):
        chosen, out = x[:, :2].argmax(-1), torch.zeros_like(self.first(x))
        for expert in range(2):
            rows = torch.where(chosen == expert)[0]
            out.index_add_(0, rows, self.first(x[rows]) * (expert + 1))
        return self.last(out)


@pytest.mark.parametrize("clone", [False, True])
@pytest.mark.parametrize("model", [Kept, Written, Experts])
def test_what_varies_goes_from_graph_to_graph(model, clone):
    torch.manual_seed(0)
    model = model().requires_grad_(False)
    served = compiled(
        model,
        platform=SimulatedPlatform(),
        capture_sizes=[3, 4],
        clone_outputs=clone,
        splitting_ops=["torch.nn.functional.softmax"] if isinstance(model, Kept) else (),
    )
    for x in (*_CALLS[:4], *_CALLS[:4]):
        ours, theirs = x.clone(), x.clone()
        torch.testing.assert_close(served(ours), model(theirs))
        torch.testing.assert_close(ours, theirs)
    assert served.stats().calls["replayed"] == 8


def test_a_result_of_such_a_size_is_the_callers_own():
    served = compiled(prefix, platform=SimulatedPlatform(), capture_sizes=[3])
    first = served(_POSITIVE)
    served(torch.eye(3))
    torch.testing.assert_close(first, prefix(_POSITIVE))


def test_warming_up_with_data_that_cannot_be_keeps_a_size_without_graphs():
    def bounded(x):
        count = (x > 0).sum().item()
        torch._check(count >= 1)
        return torch.ones(count)

    served = compiled(bounded, platform=SimulatedPlatform(), capture_sizes=[3])
    served.warmup(_POSITIVE)
    torch.testing.assert_close(served(_POSITIVE), bounded(_POSITIVE))
    assert "u0 >= 1" in str(served.explain())


def test_explain_names_the_line_that_makes_such_sizes():
    served = compiled(nonzero)
    served(_POSITIVE)
    assert "runs as written: torch.Tensor.nonzero at" in str(served.explain())
    assert f"{__file__.rpartition('/')[2]}:{nonzero.__code__.co_firstlineno + 1}" in str(
        served.explain()
    )


def test_a_size_that_the_model_asserts_is_asserted_at_every_call():
    def bounded(x):
        count = (x > 0).sum().item()
        torch._check(count <= 3)
        return torch.ones(count)

    served = compiled(bounded)
    assert served(torch.eye(3)).shape == (3,)
    with pytest.raises(SizeBranch, match=r"u0 <= 3, at .*test_varying_sizes\.py:\d+"):
        served(torch.ones(3, 3))
    assert served(-torch.eye(3)).shape == (0,)


def test_a_shape_that_python_saw_otherwise_is_refused_by_name():
    def alone(x):
        row = x[x[:, 0] > 0].squeeze(0)
        return row.sum(0) if row.dim() == 2 else row * 2

    served = compiled(alone)
    torch.testing.assert_close(served(_POSITIVE), alone(_POSITIVE))
    with pytest.raises(SizeBranch, match=r"squeeze gives shape .* here \(3,\)"):
        served(torch.eye(3))


def test_what_torch_takes_for_equal_sizes_is_compared():
    def added(x):
        chosen = x.flatten()[x.flatten() > 0] + x.flatten()
        return chosen * 2 if chosen.shape[0] == x.numel() else chosen

    served = compiled(added)
    torch.testing.assert_close(served(torch.ones(4, 3)), added(torch.ones(4, 3)))
    one = torch.zeros(2, 3)
    one[0, 0] = 1.0  # broadcast in eager
    with pytest.raises(SizeBranch, match="depend on data"):
        served(one)


def test_a_branch_on_such_a_size_is_refused_with_its_line():
    def branching(x):
        kept = x[x > 0]
        return kept.sum() if kept.shape[0] > 3 else kept.sum() * 2

    with pytest.raises(TraceFailed, match=r"test_varying_sizes\.py:\d+"):
        compiled(branching)(_POSITIVE)


def test_calls_are_not_padded():
    served = compiled(
        summed, platform=SimulatedPlatform(), capture_sizes=[8], padding="capture_sizes"
    )
    for x in _CALLS:
        torch.testing.assert_close(served(x), summed(x))
    assert served.stats().padded_rows == 0


def test_such_traces_are_not_kept(tmp_path):
    for _ in range(2):
        served = compiled(scaled, cache_dir=str(tmp_path))
        for x in _CALLS:
            torch.testing.assert_close(served(x), scaled(x))
        assert served.stats().graphs == 1


def test_every_call_may_be_verified_and_looked_at():
    served = compiled(summed, check="verify", verify_rate=1.0)
    for x in _CALLS:
        torch.testing.assert_close(served(x), summed(x))
    assert not served.bisect(_POSITIVE).differs


@pytest.mark.parametrize("turned", [False, True])
def test_whether_memory_is_contiguous_may_depend_on_data(turned):
    def written(x):
        kept = x[: (x[:, 0] > 0).sum().item()]
        other = kept.contiguous()
        other.add_(1)
        return kept, other

    served = compiled(written, platform=SimulatedPlatform(), capture_sizes=[3, 4])
    for x in _CALLS * 2:
        mine, theirs = (x.mT.clone().mT if turned else x.clone() for _ in range(2))
        torch.testing.assert_close(served(mine), written(theirs))
        torch.testing.assert_close(mine, theirs)


# What is said of such sizes ---------------------------------------------------------------


def attention(rows):
    rows = rows[None, None]
    return torch.nn.functional.scaled_dot_product_attention(rows, rows, rows)[0, 0]


def attends(x, says):
    kept = x[x[:, 0] > 0]
    if says:
        torch._check(kept.shape[0] != 0)
    found = attention(kept)
    again = kept[found[:, 0] >= found[:, 0].mean()]
    if says:
        torch._check(again.shape[0] != 0)
    return attention(again).sum(0)


def cut(x, n):
    start = n.item()
    torch._check(start + x.shape[0] <= 32)
    return torch.arange(32.0)[start : start + x.shape[0], None] + x


ROWS_OF_BOTH = {"x": {0: pw.Dim("rows", min=1, max=16)}}


@pytest.mark.parametrize("captured", [False, True])
def test_masked_rows_go_to_attention_where_it_is_said_that_there_are_some(captured):
    sizes = {"capture_sizes": (8,), "capture_max": False} if captured else {}
    config = pw.Config(dynamic=ROWS_OF_BOTH, compiler="eager", **sizes)
    fast = pw.compile(lambda x: attends(x, True), config, platform=SimulatedPlatform())
    for seed, rows in enumerate((8, 5, 8, 12)):
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(fast(x), attends(x, True))
    assert bool(fast.stats().calls["replayed"]) is captured


def test_where_nothing_is_said_the_refusal_tells_what_to_say():
    fast = pw.compile(lambda x: attends(x, False), pw.Config(dynamic=ROWS_OF_BOTH))
    with pytest.raises(TraceFailed, match=r"test_varying_sizes.py(.|\n)*torch._check\(rows.shape"):
        fast(torch.randn(5, 4))


@pytest.mark.parametrize("rows", [5, 8])
def test_an_asserted_sum_of_a_number_and_a_size_is_asserted_at_every_call(rows):
    config = pw.Config(dynamic=ROWS_OF_BOTH, compiler="eager", capture_sizes=(8,))
    fast = pw.compile(cut, config, platform=SimulatedPlatform())
    x = torch.randn(rows, 4)
    for start in (0, 3, 32 - rows, 1):
        torch.testing.assert_close(fast(x, torch.tensor(start)), cut(x, torch.tensor(start)))
    with pytest.raises(SizeBranch):
        fast(x, torch.tensor(33 - rows))
