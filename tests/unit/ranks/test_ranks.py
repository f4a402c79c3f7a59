"""What ranks do alike: join, compare, capture and fail together; in threads over one store."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from piecewise_core.config import Config
from piecewise_core.errors import CaptureFailed, ConfigError, OutOfGraphMemory, RanksDisagree
from tests.kit.ranks.together import at_once, meetings

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


def team(count):
    """Ranks that met already."""
    from piecewise_core.ranks.ranks import Ranks

    class Met(Ranks):
        may_be = True

        def same_world(self):
            pass

    made = []
    for meeting in meetings(count):
        one = Met(Config(ranks_timeout=meeting.timeout), None)
        one.meeting = meeting
        made.append(one)
    return made


def test_a_rank_alone_does_as_it_would_without_others():
    from piecewise_core.ranks.ranks import Ranks

    for config in (Config(), Config(ranks=None)):
        ranks = Ranks(config, None)
        assert not ranks.may_be
        assert ranks.all("a capture", True)
        assert not ranks.all("a capture", False)
        assert ranks.jointly("a capture", lambda: 3, lambda made: None) == 3
        assert ranks.common("sizes", [(4,)])((4,)) is None
        assert ranks.heard("a call", "wrong") == "wrong"
        ranks.lose()
        ranks.own_up()


def test_a_rank_whose_model_reduces_nothing_makes_attempts_alone():
    (rank,) = team(1)
    rank.meeting = None
    assert rank.jointly("a capture", lambda: 3, lambda made: None) == 3
    with pytest.raises(ZeroDivisionError):
        rank.jointly("a capture", lambda: 1 / 0, lambda made: None)


def test_what_one_is_not_ready_for_none_does():
    first, second = team(2)
    calls = (lambda: first.all("a capture", True), lambda: second.all("a capture", False))
    assert at_once(*calls) == [False, False]


def test_what_one_lacks_is_told_of_on_all():
    first, second = team(2)
    calls = (lambda: first.common("sizes", [(4,), (8,)]), lambda: second.common("sizes", [(8,)]))
    for lacks in at_once(*calls):
        assert [lacks((4,)), lacks((8,))] == [1, None]


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (CaptureFailed("no graph"), CaptureFailed),
        (OutOfGraphMemory("full"), OutOfGraphMemory),
        (torch.OutOfMemoryError("full"), OutOfGraphMemory),
        (ValueError("odd"), CaptureFailed),
    ],
)
def test_an_attempt_that_fails_on_one_fails_alike_on_all_and_is_undone(raised, kind):
    first, second = team(2)
    undone = []

    def fails():
        raise raised

    calls = (
        lambda: first.jointly("a capture", lambda: "made", undone.append),
        lambda: second.jointly("a capture", fails, undone.append),
    )
    for error in at_once(*calls):
        assert type(error) is kind
        assert "failed on rank 1, so on all" in str(error)
    assert undone == ["made"]


def test_settings_that_differ_are_named():
    first, second = team(2)
    calls = (
        lambda: first._compare("settings", {"padding": "none", "check": "cheap"}),
        lambda: second._compare("settings", {"padding": "none", "check": "strict"}),
    )
    for error in at_once(*calls):
        assert isinstance(error, RanksDisagree)
        assert (error.rank, error.difference) == (1, "check: 'strict', not 'cheap'")


def test_of_long_lists_the_first_part_that_differs_is_named():
    first, second = team(2)
    usual, deeper = ["Layer"] * 20, ["Layer"] * 24
    calls = (
        lambda: first._compare("models", {"model": usual}),
        lambda: second._compare("models", {"model": deeper}),
    )
    for error in at_once(*calls):
        assert error.difference == "model: of 24 parts, not of 20 parts"


def test_a_loss_is_owned_up_to_once_and_only_where_others_do_too():
    first, second = team(2)
    first.lose()
    second.lose()
    assert at_once(first.own_up, second.own_up) == [None, None]
    first.own_up()  # nothing more to say
    first.lose()
    with pytest.raises(RanksDisagree, match="did not come to a release of graphs"):
        first.own_up()


class Group:
    group_name = "0"

    def size(self):
        return 2


def test_who_did_not_find_the_others_asks_no_second_time_and_never_goes_on_alone(monkeypatch):
    from piecewise_core.ranks import ranks as module

    def alone(groups, timeout):
        raise RanksDisagree("rank 1 did not come", rank=1)

    monkeypatch.setattr(module, "gather", alone)
    ranks, group = module.Ranks(Config(), None), Group()
    for _ in range(2):
        with pytest.raises(RanksDisagree, match="rank 1 did not come"):
            ranks.join([group])


def test_groups_of_another_world_are_not_joined():
    """A new region's, after torch.distributed was begun anew: its groups have the old names."""
    from piecewise_core.ranks.ranks import Ranks

    (meeting,) = meetings(1)
    ranks = Ranks(Config(), None)
    ranks.meeting = meeting
    ranks._world_now = Group
    with pytest.raises(RanksDisagree, match="ended or begun anew"):
        ranks.join([Group()])


@pytest.mark.parametrize("value", ["all", 3, object()])
def test_what_is_no_group_is_refused(value):
    with pytest.raises(ConfigError, match=r"Config\.ranks:"):
        Config(ranks=value)


@pytest.mark.parametrize("value", [0, -1.0, True, "5", float("inf")])
def test_a_timeout_is_a_number_of_seconds(value):
    with pytest.raises(ConfigError, match=r"Config\.ranks_timeout:"):
        Config(ranks_timeout=value)


def test_none_survives_toml_which_has_no_none():
    pytest.importorskip("tomli_w")
    for value in (None, "auto"):
        assert Config.from_toml(Config(ranks=value).to_toml()).ranks == value
        assert Config.from_json(Config(ranks=value).to_json()).ranks == value
    assert Config().with_env({"PIECEWISE_RANKS": "none"}).ranks is None
    assert Config().with_env({"PIECEWISE_RANKS_TIMEOUT": "2"}).ranks_timeout == 2.0


def test_a_group_is_kept_out_of_what_is_saved():
    config = Config(ranks=Group())
    assert "ranks" not in config.to_dict()
    assert Config.from_json(config.to_json()).ranks == "auto"
