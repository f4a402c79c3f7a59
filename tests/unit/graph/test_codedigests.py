"""What tells one function, and one class, from another."""

from __future__ import annotations

import pytest
from torch import nn

from piecewise_core.graph.codedigests import class_digest, function_digest


def scaled(x, by=2, *, bias=None):
    return x * by if bias is None else x * by + bias


def same(x, by=2, *, bias=None):
    return x * by if bias is None else x * by + bias


def made_with(by, bias=None):
    def made(x, by=by, *, bias=bias):
        return x * by if bias is None else x * by + bias

    return made


def test_functions_of_one_code_are_one():
    assert function_digest(scaled) == function_digest(same)


@pytest.mark.parametrize(
    "other", [made_with(3), made_with(2, 1.0), made_with(True), made_with("2")]
)
def test_defaults_tell_functions_of_one_code_apart(other):
    assert function_digest(other) != function_digest(made_with(2))


def test_a_default_that_has_no_value_counts_by_its_type():
    first, second = made_with(object()), made_with(object())
    assert function_digest(first) == function_digest(second)
    assert function_digest(first) != function_digest(made_with(nn.Linear(1, 1)))


def test_functions_of_torch_count_by_its_version():
    assert function_digest(nn.Linear.forward) == ""
    assert class_digest(nn.Linear) == ""


def test_a_method_that_somebody_adds_to_torchs_classes_is_nobodys_business(monkeypatch):
    """As transformers does with ``smart_apply`` when it first makes a model."""
    monkeypatch.setattr(nn.Module, "of_my_own_making", scaled, raising=False)
    assert class_digest(nn.Linear) == ""


@pytest.mark.parametrize("name", ["forward", "extra_repr", "__call__"])
def test_a_method_of_torchs_that_somebody_replaced_counts(monkeypatch, name):
    monkeypatch.setattr(nn.Linear, name, scaled, raising=False)
    assert class_digest(nn.Linear) != ""


def test_every_method_of_a_users_own_class_counts():
    class Mine(nn.Linear):
        of_my_own_making = scaled

    class Other(nn.Linear):
        of_my_own_making = made_with(1)

    assert class_digest(Mine) != class_digest(nn.Linear)
    assert class_digest(Mine) != class_digest(Other)
