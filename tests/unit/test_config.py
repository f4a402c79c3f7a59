"""Config: what is refused, what is put right, and what survives a round trip."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import pickle
import re
import string
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.config import Config, ConfigWarning, Dim
from piecewise_core.config_dims import FrozenMap
from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Box, Range

ROWS = Dim("rows", max=64)
BATCH = Dim("batch", min=0, max=8)
SEQ = Dim("seq", min=2, max=128)
ONE = {"x": {0: ROWS}}
TWO = {"ids": {0: BATCH, 1: SEQ}, "mask": {0: BATCH, -1: SEQ}}


def made(**settings: Any) -> Config:
    """A Config from fields chosen at run time."""
    return Config(**settings)


def refused(**settings: Any) -> str:
    """The message with which Config refuses ``settings``."""
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    return str(caught.value)


# Strategies: Configs of every shape --------------------------------------------------

NAMES = st.text(min_size=1, max_size=8)


@st.composite
def dim_sets(draw: st.DrawFn) -> list[Dim]:
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    found = []
    for name in names:
        lo = draw(st.integers(0, 20))
        found.append(Dim(name, lo, draw(st.integers(lo, 40))))
    return found


@st.composite
def size_lists(draw: st.DrawFn, dims: list[Dim]) -> tuple[Any, ...]:
    """Sizes in normal form: sorted, distinct, ints unless there are several dims."""
    per_dim = [st.integers(d.min, d.max) for d in dims] or [st.integers(0, 99)]
    size = per_dim[0] if len(per_dim) == 1 else st.tuples(*per_dim)
    return tuple(sorted(draw(st.sets(size, max_size=4))))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    dims = draw(dim_sets())
    keys = draw(
        st.lists(st.one_of(NAMES, st.integers(0, 9)), min_size=len(dims), unique_by=str).filter(
            lambda found: not any(isinstance(k, str) and k.isdigit() for k in found)
        )
        if dims
        else st.just([])
    )
    axes = st.dictionaries(st.integers(-4, 4), st.sampled_from(dims), max_size=3) if dims else None
    dynamic = {key: draw(axes) for key in keys} if axes is not None else {}
    used = list(dict.fromkeys(d for of in dynamic.values() for d in of.values()))
    ends = {d.name: draw(size_lists([d])) for d in used}
    exact = st.one_of(size_lists(used), st.just("capture_sizes"))
    words = st.lists(NAMES.filter(lambda w: w != "auto"), unique=True, max_size=3).map(tuple)
    settings: dict[str, Any] = {
        "splitting_ops": draw(st.one_of(words, st.just("auto"))),
        "dynamic": dynamic,
        "compile_ranges_endpoints": ends if used else draw(size_lists([])),
        "compile_sizes": draw(exact),
        "capture_sizes": draw(size_lists(used)),
        "capture_max": draw(st.booleans()),
        "graph_mode": draw(st.sampled_from([None, "none", "piecewise", "full"])),
        "capture": draw(st.sampled_from(["first", "lazy"])),
        "padding": draw(st.sampled_from(["none", "capture_sizes"])),
        "max_padding_factor": draw(st.one_of(st.none(), st.floats(1, 64))),
        "out_of_range": draw(st.sampled_from(["error", "general", "eager"])),
        "compiler": draw(st.one_of(st.none(), NAMES)),
        "compile_mode": draw(st.sampled_from(["lazy", "warmup", "background"])),
        "inputs": draw(st.sampled_from(["copy", "static"])),
        "clone_outputs": draw(st.booleans()),
        "check": draw(st.sampled_from(["off", "cheap", "strict", "verify"])),
        "rewrites_off": draw(words),
        "verify_rate": draw(st.floats(0, 1, exclude_min=True)),
        "regions": draw(st.sampled_from(["auto", "declared"])),
        "max_regions": draw(st.integers(1, 2**20)),
        "cache_dir": draw(st.one_of(st.none(), NAMES)),
        "memory_limit": draw(st.one_of(st.none(), st.integers(1, 2**40))),
        "profiler_names": draw(st.booleans()),
    }
    return Config(**settings)


# Dim --------------------------------------------------------------------------------


def test_a_dim_is_written_by_keyword_or_by_position() -> None:
    assert Dim("n", max=8) == Dim("n", 1, 8) == Dim(name="n", min=1, max=8)


def test_a_dim_without_max_is_refused_and_told_how_to_write_one() -> None:
    with pytest.raises(ConfigError, match=r"Dim 'n' has no max; write Dim\('n', max="):
        Dim("n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "", "max": 8}, "'' is not a name"),
        ({"name": 3, "max": 8}, "3 is not a name"),
        ({"name": "n", "max": -1}, "Dim 'n': max: -1 is negative"),
        ({"name": "n", "min": -2, "max": 8}, "Dim 'n': min: -2 is negative"),
        ({"name": "n", "min": 9, "max": 8}, "max 8 is below min 9"),
        ({"name": "n", "max": True}, "max: True is bool, not int"),
        ({"name": "n", "min": 1.0, "max": 8}, "min: 1.0 is float, not int"),
        ({"name": "n", "max": "8"}, "max: '8' is str, not int"),
    ],
)
def test_a_dim_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Dim(**settings)


def test_a_dim_may_have_one_size_and_may_start_at_zero() -> None:
    assert Dim("n", min=0, max=0).max == 0


def test_a_dim_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROWS.max = 9  # type: ignore[misc]


# Defaults and freezing ---------------------------------------------------------------


def test_the_fields_and_defaults_are_those_of_the_documents() -> None:
    config = Config()
    assert {f.name: getattr(config, f.name) for f in dataclasses.fields(config)} == {
        "splitting_ops": (),
        "dynamic": {},
        "compile_ranges_endpoints": (),
        "compile_sizes": (),
        "capture_sizes": (),
        "capture_max": True,
        "graph_mode": None,
        "capture": "first",
        "capture_compile": "auto",
        "graph_executables": "own",
        "graph_streams": "one",
        "padding": "none",
        "max_padding_factor": None,
        "out_of_range": "error",
        "compiler": None,
        "compile_mode": "lazy",
        "compile_workers": "auto",
        "inputs": "copy",
        "clone_outputs": False,
        "check": "cheap",
        "verify_rate": 0.01,
        "regions": "auto",
        "max_regions": 64,
        "max_forms": 8,
        "rewrites_off": (),
        "cache_dir": None,
        "cache_url": None,
        "trust": "own",
        "sign_key": None,
        "memory_limit": None,
        "profiler_names": False,
        "on_event": None,
        "ranks": "auto",
        "ranks_timeout": 5.0,
    }


def test_a_config_keeps_nothing_that_its_maker_can_still_change() -> None:
    sizes, axes = [8, 16], {0: ROWS}
    dynamic = {"x": axes}
    config = Config(dynamic=dynamic, compile_sizes=sizes)
    sizes.append(3)
    axes[1] = SEQ
    dynamic["y"] = {}
    assert config == Config(dynamic={"x": {0: ROWS}}, compile_sizes=(8, 16))
    with pytest.raises(TypeError):
        config.dynamic["z"] = {}  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.check = "off"  # type: ignore[misc]


@given(configs())
def test_equal_configs_hash_alike_and_travel_to_other_processes(config: Config) -> None:
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), config.replace()):
        assert other == config
        assert hash(other) == hash(config)


def test_a_frozen_map_is_a_mapping_with_an_order() -> None:
    one = FrozenMap({"a": 1, "b": 2})
    other = FrozenMap({"b": 2, "a": 1})
    assert one == {"b": 2, "a": 1} == other
    assert one != other
    assert one != 3
    assert (len(one), one["b"], list(one), repr(one)) == (2, 2, ["a", "b"], "{'a': 1, 'b': 2}")


# splitting_ops ----------------------------------------------------------------------


def test_splitting_ops_become_a_tuple_in_the_order_given() -> None:
    assert Config(splitting_ops=["b::f", "a::f"]).splitting_ops == ("b::f", "a::f")
    assert Config(splitting_ops="auto").splitting_ops == "auto"


def test_names_that_only_a_graph_can_judge_are_accepted() -> None:
    assert Config(splitting_ops=("aten.mm", "no_such")).splitting_ops == ("aten.mm", "no_such")


def test_a_plain_string_is_refused_with_the_tuple_to_write() -> None:
    message = refused(splitting_ops="aten::mm")
    assert message.startswith("Config.splitting_ops: 'aten::mm' is str; give a tuple of names")


@pytest.mark.parametrize("value", [3, [3], [""], None, {"a::f": 1}, [None]])
def test_splitting_ops_that_are_no_names_are_refused(value: object) -> None:
    assert refused(splitting_ops=value).startswith("Config.splitting_ops: ")


def test_auto_stands_alone() -> None:
    assert '"auto" stands alone' in refused(splitting_ops=("auto", "a::f"))


def test_duplicate_splitting_ops_are_dropped_with_a_warning() -> None:
    with pytest.warns(ConfigWarning, match="splitting_ops.*duplicates") as caught:
        config = Config(splitting_ops=("a::f", "b::f", "a::f"))
    assert config.splitting_ops == ("a::f", "b::f")
    assert [w.filename for w in caught] == [__file__]


# dynamic ----------------------------------------------------------------------------


def test_dims_are_listed_once_in_order_of_first_appearance() -> None:
    config = Config(dynamic={"mask": {1: SEQ}, "ids": {0: BATCH, 1: SEQ}})
    assert config.dims == (SEQ, BATCH)
    assert config.bounds == Box((Range(2, 128), Range(0, 8)))


def test_without_dims_the_bounds_are_the_empty_box() -> None:
    assert Config().dims == ()
    assert Config().bounds == Box(())


def test_the_order_of_dims_tells_two_configs_apart() -> None:
    forward, backward = {"a": {0: BATCH}, "b": {0: SEQ}}, {"b": {0: SEQ}, "a": {0: BATCH}}
    assert Config(dynamic=forward) != Config(dynamic=backward)


def test_arguments_are_names_paths_or_positions() -> None:
    config = Config(dynamic={"features.input_ids": {0: ROWS}, "xs.0": {0: ROWS}, 2: {-1: ROWS}})
    assert list(config.dynamic) == ["features.input_ids", "xs.0", 2]


def test_a_position_written_in_digits_is_a_position() -> None:
    assert Config(dynamic={"1": {0: ROWS}}) == Config(dynamic={1: {0: ROWS}})
    assert "argument 1 is listed twice" in refused(dynamic={"1": {0: ROWS}, 1: {0: ROWS}})


def test_one_name_with_two_pairs_of_bounds_is_refused_naming_both_places() -> None:
    message = refused(dynamic={"x": {0: Dim("n", 1, 8)}, "y": {-1: Dim("n", 1, 9)}})
    assert "dim 'n' is [1, 8] at dynamic['x'][0] and [1, 9] at dynamic['y'][-1]" in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "Config.dynamic: None is not a mapping"),
        ([("x", {0: ROWS})], "is not a mapping"),
        ({"x": ROWS}, "Config.dynamic['x']: "),
        ({"x": [ROWS]}, "Config.dynamic['x']: "),
        ({"x": {"0": ROWS}}, "'0' is no tensor dimension"),
        ({"x": {True: ROWS}}, "True is no tensor dimension"),
        ({"x": {"y": {0: ROWS}}}, "own: write {'x.y': "),
        ({"x": {0: 8}}, "Config.dynamic['x'][0]: 8 is int, not Dim"),
        ({"": {0: ROWS}}, "'' names no argument"),
        ({-1: {0: ROWS}}, "argument: -1 is negative"),
        ({True: {0: ROWS}}, "argument: True is bool"),
        ({1.0: {0: ROWS}}, "argument: 1.0 is float"),
    ],
)
def test_a_malformed_dynamic_is_refused_naming_the_place(value: object, message: str) -> None:
    assert message in refused(dynamic=value)


# Sizes and endpoints (FAULTS 17) ------------------------------------------------------

SIZE_FIELDS = ["compile_ranges_endpoints", "compile_sizes", "capture_sizes"]


@pytest.mark.parametrize("field", SIZE_FIELDS)
@pytest.mark.parametrize("dynamic", [{}, ONE])
def test_unsorted_and_duplicate_sizes_are_put_right_with_one_warning(
    field: str, dynamic: dict[str, Any]
) -> None:
    with pytest.warns(ConfigWarning) as caught:
        config = made(**{"dynamic": dynamic, field: [32, 8, 8], "capture_max": False})
    assert getattr(config, field) == (8, 32)
    (warning,) = caught
    assert warning.filename == __file__
    assert f"Config.{field}: [32, 8, 8] is unsorted or holds duplicates; using (8, 32)" in str(
        warning.message
    )


def test_several_fields_put_right_are_told_in_one_warning() -> None:
    with pytest.warns(ConfigWarning) as caught:
        Config(compile_sizes=[2, 1], capture_sizes=[2, 2], compile_ranges_endpoints=[9, 3])
    (warning,) = caught
    assert all(field in str(warning.message) for field in SIZE_FIELDS)


@pytest.mark.parametrize("given_as", [[8, 16], (8, 16), range(8, 17, 8), {16, 8}, iter([8, 16])])
def test_any_container_of_sizes_is_taken_and_a_set_has_no_order_to_warn_about(
    given_as: Any,
) -> None:
    assert Config(compile_sizes=given_as).compile_sizes == (8, 16)


@pytest.mark.parametrize("field", SIZE_FIELDS)
@pytest.mark.parametrize("dynamic", [{}, ONE])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([-4], "-4 is negative"),
        ([True], "True is bool, not int"),
        ([8.0], "8.0 is float, not int"),
        (["8"], "'8' is str, not int"),
        ([None], "None is NoneType, not int"),
        (8, "8 is int; give a tuple"),
        ("8", "'8' is str; give a tuple"),
        (None, "None is NoneType; give a tuple"),
    ],
)
def test_what_is_no_size_is_refused_naming_field_and_value(
    field: str, dynamic: dict[str, Any], value: object, message: str
) -> None:
    assert refused(**{"dynamic": dynamic, field: value}).startswith(f"Config.{field}: {message}")


@pytest.mark.parametrize("field", SIZE_FIELDS)
@pytest.mark.parametrize(
    ("size", "side"),
    [(65, "65 is above the max"), (0, "0 is below the min"), (3, "3 is below the min")],
)
def test_a_size_outside_the_bounds_is_refused_because_it_is_never_warmed(
    field: str, size: int, side: str
) -> None:
    message = refused(**{"dynamic": {"x": {0: Dim("rows", 4, 64)}}, field: [8, size][::-1]})
    assert message.startswith(f"Config.{field}: {side} of dim 'rows', whose bounds are [4, 64]")
    assert "never warmed" in message
    assert f"or {'raise' if size > 64 else 'lower'} Dim." in message


@pytest.mark.parametrize("field", SIZE_FIELDS)
def test_the_bounds_themselves_are_sizes_and_zero_is_one_where_min_is_zero(field: str) -> None:
    config = made(**{"dynamic": {"x": {0: Dim("n", 0, 9)}}, field: (0, 9)})
    assert getattr(config, field) == (0, 9)


@pytest.mark.parametrize("field", SIZE_FIELDS)
def test_sizes_given_before_the_dims_are_checked_when_the_dims_come(field: str) -> None:
    early = made(**{field: (0, 9_000)})
    assert getattr(early, field) == (0, 9_000)
    with pytest.raises(ConfigError, match=rf"Config\.{field}: 0 is below the min of dim 'rows'"):
        early.replace(dynamic=ONE)


def test_sizes_of_several_dims_are_tuples_in_the_order_of_the_dims() -> None:
    config = Config(dynamic=TWO, compile_sizes=[(0, 16), (1, 16)], capture_max=False)
    assert config.compile_sizes == config.sizes == ((0, 16), (1, 16))
    with pytest.raises(ConfigError, match="129 is above the max of dim 'seq'"):
        config.replace(capture_sizes=[(8, 129)])


def test_sizes_of_one_dim_are_ints_and_read_as_tuples_per_dim() -> None:
    config = Config(dynamic=ONE, compile_sizes=[(8,), 16])
    assert config.compile_sizes == (8, 16)
    assert config.sizes == ((8,), (16,))


@pytest.mark.parametrize("field", ["compile_sizes", "capture_sizes"])
@pytest.mark.parametrize(
    ("dynamic", "value", "message"),
    [
        (TWO, [8], "8 is not one size for each of 2 dims ('batch', 'seq'); write a tuple of 2"),
        (TWO, [(8, 16, 2)], "(8, 16, 2) is not one size for each of 2 dims"),
        (ONE, [(8, 16)], "(8, 16) is not one size for each of 1 dim ('rows'); write an int"),
        (ONE, [()], "() is not one size"),
        ({}, [(8, 16), 8], "8 is not one size for each of 2 dims, like the first entry"),
        ({}, [(), 8], "8 is not one size for each of 0 dims, like the first entry; write ()"),
        ({}, [8, ()], "() is not one size for each of 1 dim, like the first entry"),
        (TWO, [(True, 16)], "True is bool"),
        (TWO, [(8, (2, 3))], "(2, 3) is tuple, not int"),
    ],
)
def test_a_size_of_the_wrong_width_is_refused(
    field: str, dynamic: dict[str, Any], value: object, message: str
) -> None:
    assert refused(**{"dynamic": dynamic, field: value}).startswith(f"Config.{field}: {message}")


# capture_sizes and capture_max (FAULTS 18) --------------------------------------------


def test_the_maximum_is_a_capture_size_unless_excluded() -> None:
    assert Config(dynamic=ONE, capture_sizes=[8]).captures == ((8,), (64,))
    assert Config(dynamic=ONE, capture_sizes=[8]).capture_sizes == (8, 64)
    assert Config(dynamic=ONE, capture_sizes=[8, 64]).capture_sizes == (8, 64)
    assert Config(dynamic=ONE, capture_sizes=[8], capture_max=False).captures == ((8,),)
    assert Config(dynamic=TWO, capture_sizes=[(1, 16)]).captures == ((1, 16), (8, 128))


def test_without_capture_sizes_or_dims_no_maximum_joins() -> None:
    assert Config(dynamic=ONE).captures == ()
    assert Config(capture_sizes=[8]).captures == ((8,),)


def test_without_dims_the_one_size_is_the_empty_tuple() -> None:
    config = Config(capture_sizes=[()], compile_sizes="capture_sizes")
    assert config.capture_sizes == config.captures == config.sizes == ((),)
    assert Config(compile_sizes=[()]).sizes == ((),)
    assert Config.from_json(config.to_json()) == Config.from_dict(config.to_dict()) == config
    assert Config().with_env({"PIECEWISE_CAPTURE_SIZES": "[[]]"}).captures == ((),)
    with pytest.raises(ConfigError, match=r"capture_sizes: \(\) is not one size for each of 1 dim"):
        config.replace(dynamic=ONE)


@pytest.mark.parametrize("mode", ["piecewise", "full", "full_and_piecewise"])
def test_asking_for_graphs_without_dims_captures_the_one_size(mode: str) -> None:
    config = made(graph_mode=mode)
    assert config.captures == ((),)
    assert config.capture_sizes == ()
    assert config.replace(dynamic=ONE).captures == ()  # whoever names dims lists sizes
    assert made(graph_mode=mode, capture_sizes=[8]).captures == ((8,),)


@pytest.mark.parametrize("mode", [None, "none"])
def test_without_dims_nothing_is_captured_unasked(mode: str | None) -> None:
    assert made(graph_mode=mode).captures == ()


def test_compile_sizes_can_follow_the_capture_sizes() -> None:
    config = Config(compile_sizes="capture_sizes", capture_sizes=[8])
    assert config.sizes == ((8,),)
    assert config.replace(dynamic=ONE).sizes == ((8,), (64,))
    assert 'or "capture_sizes"' in refused(compile_sizes="capture_size")


def test_the_maximum_follows_the_bounds_and_the_setting() -> None:
    config = Config(dynamic=ONE, capture_sizes=[8])
    assert config.replace(dynamic={"x": {0: Dim("rows", max=32)}}).capture_sizes == (8, 32)
    assert config.replace(capture_max=False).capture_sizes == (8,)
    assert config.replace(check="off").capture_sizes == (8, 64)
    assert config.replace(capture_max=False, capture_sizes=[8, 64]).capture_sizes == (8, 64)


def test_a_capture_size_that_stands_alone_is_never_lost() -> None:
    config = Config(dynamic=ONE, capture_sizes=[64])
    assert config.replace(capture_max=False).capture_sizes == (64,)
    assert config.replace(dynamic={"x": {0: Dim("rows", max=99)}}).capture_sizes == (64, 99)


# compile_ranges_endpoints -------------------------------------------------------------


def test_endpoints_are_read_per_dim() -> None:
    assert Config(dynamic=ONE, compile_ranges_endpoints=[8, 32]).endpoints_by_dim == ((8, 32),)
    two = Config(dynamic=TWO, compile_ranges_endpoints={"seq": [32, 64]})
    assert two.compile_ranges_endpoints == {"seq": (32, 64)}
    assert two.endpoints_by_dim == ((), (32, 64))
    assert Config(dynamic=TWO).endpoints_by_dim == ((), ())


def test_endpoints_by_name_of_the_only_dim_are_plain_endpoints() -> None:
    named = Config(dynamic=ONE, compile_ranges_endpoints={"rows": [8]})
    assert named == Config(dynamic=ONE, compile_ranges_endpoints=[8])


def test_endpoints_by_name_come_in_the_order_of_the_dims_and_empty_ones_are_dropped() -> None:
    given_last_first = {"seq": [32], "batch": [4]}
    config = Config(dynamic=TWO, compile_ranges_endpoints=given_last_first)
    assert list(config.compile_ranges_endpoints) == ["batch", "seq"]
    empty = Config(dynamic=TWO, compile_ranges_endpoints={"seq": []})
    assert empty.compile_ranges_endpoints == ()


def test_endpoints_by_name_wait_for_the_dims() -> None:
    early = Config(compile_ranges_endpoints={"seq": [32], "batch": [4]})
    assert early.endpoints_by_dim == ()
    assert early.replace(dynamic=TWO).endpoints_by_dim == ((4,), (32,))


def test_plain_endpoints_for_several_dims_are_refused_listing_the_dims() -> None:
    message = refused(dynamic=TWO, compile_ranges_endpoints=[8])
    assert "there are 2: 'batch', 'seq'; write {'batch': (8,)}" in message


def test_an_unknown_dim_name_is_refused_with_the_nearest() -> None:
    message = refused(dynamic=TWO, compile_ranges_endpoints={"sequ": [8]})
    assert message.endswith("'sequ' is not the name of a dim ('batch', 'seq'); did you mean 'seq'?")
    assert "3 is not the name of a dim (a string)" in refused(compile_ranges_endpoints={3: [8]})


def test_an_endpoint_outside_its_own_dim_is_refused_naming_it() -> None:
    message = refused(dynamic=TWO, compile_ranges_endpoints={"batch": [16]})
    assert message.startswith("Config.compile_ranges_endpoints['batch']: 16 is above the max")


# Enumerations, flags, paths and limits ------------------------------------------------


@pytest.mark.parametrize(
    ("field", "slip", "meant"),
    [
        ("graph_mode", "piecewize", "piecewise"),
        ("padding", "capture_size", "capture_sizes"),
        ("out_of_range", "generel", "general"),
        ("compile_mode", "Lazy", "lazy"),
        ("inputs", "statics", "static"),
        ("check", "strikt", "strict"),
    ],
)
def test_a_slip_in_an_enumerated_field_is_told_the_nearest_and_all_values(
    field: str, slip: str, meant: str
) -> None:
    message = refused(**{field: slip})
    assert message.startswith(f"Config.{field}: {slip!r} is not one of ")
    assert message.endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize(
    "field", ["padding", "out_of_range", "compile_mode", "capture", "inputs", "check"]
)
@pytest.mark.parametrize("value", [None, True, 1, ["lazy"], ""])
def test_an_enumerated_field_takes_its_own_values_only(field: str, value: object) -> None:
    assert refused(**{field: value}).startswith(f"Config.{field}: {value!r} is not one of ")


@pytest.mark.parametrize("field", ["capture_max", "clone_outputs"])
@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_a_flag_is_true_or_false(field: str, value: object) -> None:
    assert refused(**{field: value}).startswith(f"Config.{field}: {value!r} is ")


@pytest.mark.parametrize("value", [0, -0.5, 1.5, True, "often", None, float("nan")])
def test_a_share_of_calls_is_above_0_and_at_most_1(value: object) -> None:
    assert refused(verify_rate=value).startswith(f"Config.verify_rate: {value!r} is ")


def test_a_share_of_calls_may_be_written_as_an_int_and_come_from_the_environment() -> None:
    assert Config(verify_rate=1).verify_rate == 1.0
    environ = {"PIECEWISE_CHECK": "verify", "PIECEWISE_VERIFY_RATE": "0.25"}
    config = Config().with_env(environ)
    assert (config.check, config.verify_rate) == ("verify", 0.25)
    with pytest.raises(ConfigError, match="PIECEWISE_VERIFY_RATE='2'"):
        Config().with_env({"PIECEWISE_VERIFY_RATE": "2"})


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8GB"])
def test_a_memory_limit_is_a_positive_number_of_bytes(value: object) -> None:
    assert refused(memory_limit=value).startswith("Config.memory_limit: ")


def test_a_cache_directory_is_kept_as_text() -> None:
    assert Config(cache_dir=pathlib.PurePosixPath("a/b")).cache_dir == "a/b"
    assert Config(cache_dir="~/b").cache_dir == "~/b"


def test_a_sign_key_is_never_shown_and_goes_nowhere(tmp_path: pathlib.Path) -> None:
    secret = "5ec2e7" * 8
    config = Config(trust="signed", sign_key=tmp_path / secret)
    assert config.sign_key == str(tmp_path / secret)
    assert secret not in repr(config) + config.to_json() + str(config.cache_factors())
    assert secret.encode() not in pickle.dumps(config)
    assert pickle.loads(pickle.dumps(config)) == config.replace(sign_key=None)
    assert copy.deepcopy(config) is config
    assert Config().with_env({"PIECEWISE_SIGN_KEY": secret}).sign_key == secret
    with pytest.raises(ConfigError) as caught:
        Config(sign_key=secret.encode())  # type: ignore[arg-type]
    assert secret not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Config().with_env({"PIECEWISE_SIGN_KEY": secret, "PIECEWISE_TRUST": "signd"})
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["/shared", "s3:bucket", "", 3, "s3://me:pw@b", "https://b/x?sig=pw", "file://x/y"]
)
def test_a_cache_url_has_a_scheme_and_no_secret(value: object) -> None:
    with pytest.raises(ConfigError, match=r"Config\.cache_url") as caught:
        Config(cache_url=value)  # type: ignore[arg-type]
    assert "pw" not in str(caught.value)
    assert Config(cache_url="s3://me@bucket/x").cache_url == "s3://me@bucket/x"


@pytest.mark.parametrize("value", [b"a", 3, "", True])
def test_a_cache_directory_that_is_no_path_is_refused(value: object) -> None:
    assert refused(cache_dir=value).startswith(f"Config.cache_dir: {value!r} is not a path")


@pytest.mark.parametrize("value", [3, "", True])
def test_a_compiler_is_a_name(value: object) -> None:
    assert refused(compiler=value).startswith(f"Config.compiler: {value!r} is not a name")


# replace, cache factors ---------------------------------------------------------------


def test_replace_refuses_an_unknown_field_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'compile_size' is not a field .*did you mean 'compile_sizes'"
    ):
        Config().replace(compile_size=(1,))


def test_only_what_changes_an_artifact_by_itself_is_a_cache_factor() -> None:
    changes: dict[str, Any] = {
        "splitting_ops": ("a::f",),
        "dynamic": ONE,
        "compile_ranges_endpoints": (8,),
        "compile_sizes": (8,),
        "capture_sizes": (8,),
        "capture_max": False,
        "graph_mode": "full",
        "capture": "lazy",
        "capture_compile": "exact",
        "graph_executables": "shared",
        "graph_streams": "two",
        "padding": "capture_sizes",
        "max_padding_factor": 2.0,
        "out_of_range": "eager",
        "compiler": "inductor",
        "compile_mode": "warmup",
        "compile_workers": 2,
        "inputs": "static",
        "clone_outputs": True,
        "check": "off",
        "verify_rate": 0.5,
        "regions": "declared",
        "max_regions": 8,
        "max_forms": 3,
        "rewrites_off": ("mask_terms",),
        "cache_dir": "elsewhere",
        "cache_url": "memory://x",
        "trust": "signed",
        "sign_key": "keys.json",
        "memory_limit": 1,
        "profiler_names": True,
        "on_event": print,
        "ranks": None,
        "ranks_timeout": 1.0,
    }
    base = Config().cache_factors()
    changed = {f for f, v in changes.items() if made(**{f: v}).cache_factors() != base}
    assert changes.keys() == {f.name for f in dataclasses.fields(Config)}
    assert changed == {"compiler"}
    assert Config(compiler="inductor").cache_factors() == {"compiler": "inductor"}


@pytest.mark.parametrize("value", [0.5, 0, -1, True, "2", float("nan"), float("inf")])
def test_a_padding_factor_is_a_number_from_1(value: object) -> None:
    assert refused(max_padding_factor=value).startswith("Config.max_padding_factor: ")
    assert Config(max_padding_factor=1).max_padding_factor == 1.0


# Round trips --------------------------------------------------------------------------


@given(configs())
def test_json_and_plain_data_give_back_the_same_config(config: Config) -> None:
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json()) == config.to_dict()


@given(configs())
def test_toml_gives_back_the_same_config(config: Config) -> None:
    pytest.importorskip("tomli_w")
    assert Config.from_toml(config.to_toml()) == config


def test_a_toml_document_written_by_hand_is_read() -> None:
    text = """
    splitting_ops = ["aten::mm"]
    capture_sizes = [[1, 16]]
    [dynamic.ids]
    0 = {name = "batch", min = 0, max = 8}
    -1 = {name = "seq", min = 2, max = 128}
    [compile_ranges_endpoints]
    seq = [32]
    """
    assert Config.from_toml(text) == Config(
        splitting_ops=("aten::mm",),
        capture_sizes=[(1, 16)],
        dynamic={"ids": {0: BATCH, -1: SEQ}},
        compile_ranges_endpoints={"seq": [32]},
    )


def test_missing_fields_have_their_defaults_and_dims_may_be_dims_already() -> None:
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"dynamic": ONE}) == Config(dynamic=ONE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split_ops": ()}, "); did you mean 'splitting_ops'?"),
        ({"zzz": 1}, "'zzz' is not a field (splitting_ops, dynamic, "),
        ({3: 1}, "3 is not a field"),
        ([1], "[1] is list; give a mapping of fields"),
        (
            {"dynamic": {"x": {"0": {"name": "n", "maxi": 3}}}},
            "Config.dynamic['x'][0]: 'maxi' is not part of a Dim (name, min, max, multiple_of)",
        ),
        ({"dynamic": {"x": {"0": {"max": 3}}}}, "Config.dynamic['x'][0]: {'max': 3} has no name"),
        ({"dynamic": {"x": {"0": {"name": "n"}}}}, "Dim 'n' has no max"),
        ({"dynamic": {"x": {"one": {"name": "n", "max": 3}}}}, "'one' is no tensor dimension"),
        ({"dynamic": {"x": 3}}, "Config.dynamic['x']: 3 is not a mapping"),
        ({"dynamic": {"x": {"0": 3}}}, "Config.dynamic['x'][0]: 3 is int, not Dim"),
        ({"dynamic": 3}, "Config.dynamic: 3 is not a mapping"),
    ],
)
def test_plain_data_that_is_no_config_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config.from_dict(data)


def test_text_that_is_neither_json_nor_toml_is_refused() -> None:
    with pytest.raises(ConfigError, match="not JSON: Expecting"):
        Config.from_json("{")
    with pytest.raises(ConfigError, match="not TOML: "):
        Config.from_toml("= 3")
    with pytest.raises(ConfigError, match="is list; give a mapping"):
        Config.from_json("[]")


def test_writing_toml_without_its_package_names_the_extra() -> None:
    """In a fresh interpreter whose import path offers no tomli_w."""
    done = run_python(
        """
        import sys
        sys.modules["tomli_w"] = None
        from piecewise_core.config import Config
        from piecewise_core.errors import ConfigError
        try:
            Config().to_toml()
        except ConfigError as error:
            print(error)
        """
    )
    assert "pip install 'piecewise-core[toml]'" in done


# Environment --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("PIECEWISE_COMPILE_MODE", "warmup", "compile_mode", "warmup"),
        ("PIECEWISE_COMPILE_MODE", '"warmup"', "compile_mode", "warmup"),
        ("PIECEWISE_GRAPH_MODE", "none", "graph_mode", "none"),
        ("PIECEWISE_COMPILER", "eager", "compiler", "eager"),
        ("PIECEWISE_CACHE_DIR", "2024", "cache_dir", "2024"),
        ("PIECEWISE_CLONE_OUTPUTS", "true", "clone_outputs", True),
        ("PIECEWISE_CLONE_OUTPUTS", "1", "clone_outputs", True),
        ("PIECEWISE_CAPTURE_MAX", "False", "capture_max", False),
        ("PIECEWISE_CAPTURE_MAX", "0", "capture_max", False),
        ("PIECEWISE_MEMORY_LIMIT", "1024", "memory_limit", 1024),
        ("PIECEWISE_COMPILE_SIZES", "8", "compile_sizes", (8,)),
        ("PIECEWISE_COMPILE_SIZES", "8, 16,", "compile_sizes", (8, 16)),
        ("PIECEWISE_COMPILE_SIZES", "[8, 16]", "compile_sizes", (8, 16)),
        ("PIECEWISE_COMPILE_SIZES", "[]", "compile_sizes", ()),
        ("PIECEWISE_COMPILE_SIZES", "capture_sizes", "compile_sizes", "capture_sizes"),
        ("PIECEWISE_CAPTURE_SIZES", "(1, 8), (2, 8)", "capture_sizes", ((1, 8), (2, 8))),
        ("PIECEWISE_CAPTURE_SIZES", "(1, 8)", "capture_sizes", ((1, 8),)),
        ("PIECEWISE_CAPTURE_SIZES", "[[1, 8]]", "capture_sizes", ((1, 8),)),
        ("PIECEWISE_COMPILE_RANGES_ENDPOINTS", "8,32", "compile_ranges_endpoints", (8, 32)),
        (
            "PIECEWISE_COMPILE_RANGES_ENDPOINTS",
            '{"n": [8]}',
            "compile_ranges_endpoints",
            FrozenMap({"n": (8,)}),
        ),
        ("PIECEWISE_SPLITTING_OPS", "a::f, b::g", "splitting_ops", ("a::f", "b::g")),
        ("PIECEWISE_SPLITTING_OPS", '["a::f"]', "splitting_ops", ("a::f",)),
        ("PIECEWISE_SPLITTING_OPS", "auto", "splitting_ops", "auto"),
        (
            "PIECEWISE_DYNAMIC",
            '{"x": {"0": {"name": "rows", "max": 64}}}',
            "dynamic",
            Config(dynamic=ONE).dynamic,
        ),
    ],
)
def test_a_variable_overrides_its_field(
    variable: str, text: str, field: str, value: object
) -> None:
    assert Config().with_env({variable: text}) == made(**{field: value})


@pytest.mark.parametrize("field", ["graph_mode", "compiler", "cache_dir", "memory_limit"])
def test_null_in_a_variable_is_none(field: str) -> None:
    settings: dict[str, Any] = {"graph_mode": "full", "compiler": "a", "cache_dir": "b"}
    config = Config(memory_limit=1, **settings)
    assert getattr(config.with_env({f"PIECEWISE_{field.upper()}": "null"}), field) is None


def test_what_no_variable_names_stays_and_an_empty_one_counts_as_unset() -> None:
    config = Config(dynamic=ONE, capture_sizes=[8], check="off")
    assert config.with_env({"PIECEWISE_CHECK": " ", "PIECEWISE_CAPTURE_SIZES": ""}) is config
    assert config.with_env({"PIECEWISE_CHECK": "cheap"}) == config.replace(check="cheap")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIECEWISE_COMPILE_MODE", "background")
    assert Config().with_env().compile_mode == "background"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PIECEWISE_COMPILE_MODE", "warmpu"),
        ("PIECEWISE_COMPILE_SIZES", "8;16"),
        ("PIECEWISE_COMPILE_SIZES", "8.5"),
        ("PIECEWISE_CAPTURE_SIZES", "65"),
        ("PIECEWISE_COMPILE_RANGES_ENDPOINTS", '{"row": [8]}'),
        ("PIECEWISE_MEMORY_LIMIT", "8GB"),
        ("PIECEWISE_CLONE_OUTPUTS", "yes"),
        ("PIECEWISE_DYNAMIC", "batch"),
        ("PIECEWISE_DYNAMIC", '{"x": {"0": {"name": "n", "max": -1}}}'),
        ("PIECEWISE_SPLITTING_OPS", "3"),
    ],
)
def test_a_bad_value_is_refused_naming_the_variable_and_its_text(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(dynamic=ONE).with_env({variable: text, "PIECEWISE_CHECK": "off"})
    assert f"{variable}={text!r}" in str(caught.value)


def test_only_the_variable_at_fault_is_blamed() -> None:
    environ = {"PIECEWISE_CHECK": "off", "PIECEWISE_COMPILE_SIZES": "8, -1"}
    with pytest.raises(ConfigError, match=r"^PIECEWISE_COMPILE_SIZES='8, -1': Config\.compile_siz"):
        Config().with_env(environ)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PIECEWISE_COMPILE_SIZE", "PIECEWISE_COMPILE_SIZES"),
        ("PIECEWISE_SPLITING_OPS", "PIECEWISE_SPLITTING_OPS"),
    ],
)
def test_a_variable_that_nearly_names_a_field_warns_once(variable: str, meant: str) -> None:
    with pytest.warns(ConfigWarning) as caught:
        assert Config().with_env({variable: "8"}) == Config()
    assert [str(w.message) for w in caught] == [f"{variable} sets nothing; did you mean {meant}?"]
    assert caught[0].filename == __file__


def test_variables_of_others_are_none_of_our_business() -> None:
    others = (
        "PIECEWISE_PLATFORM",
        "PIECEWISE_CACHE_MODE",
        "PIECEWISE_HOME",
        "COMPILE_MODE",
        "piecewise_check",
        "PATH",
    )
    assert Config().with_env(dict.fromkeys(others, "zzz")) == Config()


@given(
    st.sampled_from([f.name for f in dataclasses.fields(Config)]),
    st.text(alphabet=string.printable, max_size=20),
)
def test_any_text_in_a_variable_gives_a_config_or_an_error_naming_it(field: str, text: str) -> None:
    variable = f"PIECEWISE_{field.upper()}"
    try:
        config = Config().with_env({variable: text})
    except (ConfigError, ConfigWarning) as refusal:
        said = str(refusal)
    else:
        said = variable
        assert config.replace(**{field: getattr(Config(), field)}) == Config()
    assert variable in said or said.startswith(f"Config.{field}: ")


@given(configs())
def test_a_whole_config_can_come_from_the_environment_as_json(config: Config) -> None:
    environ = {f"PIECEWISE_{k.upper()}": json.dumps(v) for k, v in config.to_dict().items()}
    assert Config().with_env(environ) == config


# Import -------------------------------------------------------------------------------


def run_python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_importing_config_brings_neither_torch_nor_what_only_errors_and_files_need() -> None:
    loaded = run_python("import sys, piecewise_core.config; print(*sys.modules)").split()
    assert "piecewise_core.config" in loaded
    assert not {"torch", "json", "difflib", "tomllib", "tomli_w", "pluggy"} & set(loaded)


# Files ------------------------------------------------------------------------------


def test_a_file_is_read_by_its_suffix(tmp_path):
    config = Config(
        dynamic={"x": {0: Dim("rows", max=64)}, 1: {-1: Dim("width", 2, 8)}},
        compile_ranges_endpoints={"rows": (8,)},
        padding="capture_sizes",
    )
    for suffix, text in ((".json", config.to_json()), (".TOML", config.to_toml())):
        file = tmp_path / f"config{suffix}"
        file.write_text(text, encoding="utf-8-sig")  # as some editors save it
        assert Config.from_file(file) == config
        assert Config.from_file(str(file)) == config


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "paddin = 'none'", "'paddin' is not a field .*did you mean 'padding'"),
        ("a.json", '{"capture_size": [4]}', "did you mean 'capture_sizes'"),
        ("a.toml", "[dynamic.x]\n0 = {name = 'n', mx = 4}", "did you mean 'max'"),
        ("a.toml", "capture_sizes = [0.5]", "0.5"),
        ("a.toml", "capture_sizes = [", "not TOML"),
        ("a.json", "[1, 2]", "give a mapping of fields"),
        ("a.json", "", "not JSON"),
        ("a.yaml", "x: 1", "ends in .toml or .json"),
        ("a.json", b"\xff\xfe{", "no text in UTF-8"),
        ("a.json", None, "cannot be read: No such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, name, text, said):
    file = tmp_path / name
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=f"{re.escape(str(file))}.*{said}"):
        Config.from_file(file)


# Names that there are not -------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Config(spliting_ops=()), "'spliting_ops' is not a field .*'splitting_ops'"),
        (lambda: Config(memory=1), "'memory' is not a field .*did you mean 'memory_limit'"),
        (lambda: Config(("torch.softmax",)), "takes fields by name, not tuple by position"),
        (lambda: Dim("rows", maximum=4), "'maximum' is not part of it .*did you mean 'max'"),
        (lambda: Config(padding="capture_size"), "did you mean 'capture_sizes'"),
        (lambda: Config(compile_mode="backgroud"), "did you mean 'background'"),
        (lambda: Config(graph_mode="peicewise"), "did you mean 'piecewise'"),
        (lambda: Config(regions="declare"), "did you mean 'declared'"),
    ],
)
def test_a_slip_in_a_name_is_told_with_the_nearest_one(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
