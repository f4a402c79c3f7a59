"""Writes to dicts, classes, lists, cells, functions and entries are noticed, in C and in Python."""

from __future__ import annotations

import sys

import pytest

from piecewise_core.runtime import watch
from piecewise_core.runtime.polls import Poll
from piecewise_core.runtime.watch import Watch


class Base:
    number = 1


class Child(Base):
    pass


def cell_of(value):
    def read():
        return value

    def write(new):
        nonlocal value
        value = new

    return read.__closure__[0], write


@pytest.fixture(params=["c", "python"])
def way(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(watch, "native", lambda: None)
    elif watch.native() is None:
        pytest.skip("no C compiler")


@pytest.mark.usefixtures("way")
def test_each_kind_of_container_tells_of_a_write_and_is_named():
    table, items, (cell, write) = {"a": 1}, [1, 2], cell_of(1)
    scope: dict[str, object] = {"name": 1}
    held = {3}
    poll = Poll(held, "items", lambda: set(held))

    def function(a=1):
        return a

    watched = Watch([table, items, cell, function, (scope, "name"), Base, Child, poll])
    changes = [
        (table, lambda: table.update(a=2)),
        (table, lambda: table.update(b=2)),
        (items, lambda: items.append(3)),
        (items, lambda: items.__setitem__(0, 5)),
        (cell, lambda: write(object())),
        (function, lambda: setattr(function, "__code__", (lambda a=1: a + 1).__code__)),
        (function, lambda: setattr(function, "__defaults__", (7,))),
        ((scope, "name"), lambda: scope.update(name=object())),
        ((scope, "name"), lambda: scope.clear()),
        (Base, lambda: setattr(Base, "number", object())),
        (Child, lambda: setattr(Child, "other", object())),
        (poll, lambda: held.add(4)),
    ]
    for container, change in changes:
        assert watched.check() == 0
        change()
        assert watched.check()
        assert watched.changed() == [container]
        watched.settle()
    scope.update(another=1)
    assert watched.check() == 0


@pytest.mark.usefixtures("way")
def test_what_is_written_while_a_watch_is_renewed_is_named():
    table, items = {"a": 1}, [1, 2]
    watched = Watch([table, items])
    settle = watched.settle

    def settle_behind_writes():
        table["a"] = object()
        items.append(3)
        settle()

    watched.settle = settle_behind_writes
    assert watched.renew() == [table, items]
    assert watched.check() == 0
    assert watched.changed() == []


@pytest.mark.usefixtures("way")
def test_one_watch_is_not_alarmed_by_what_another_watches():
    mine, theirs = {"a": 1}, {"a": 1}
    first, second = Watch([mine]), Watch([theirs])
    theirs["a"] = object()
    assert first.check() == 0
    assert second.check()


@pytest.mark.usefixtures("way")
def test_a_hundred_generations_of_dicts_are_watched_without_mixing_them_up():
    for _ in range(100):
        dicts = [{"n": n} for n in range(50)]
        watched = Watch(dicts)
        dicts[7]["n"] = object()
        assert watched.changed() == [dicts[7]]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="writes do not reach instances' dicts")
@pytest.mark.usefixtures("way")
def test_an_attribute_of_an_instance_is_a_write_to_its_dict():
    child = Child()
    child.x = 1
    watched = Watch([vars(child)])
    child.x = object()
    assert watched.check()
