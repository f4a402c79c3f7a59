"""What is asked of operators beside what torch's tags say of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from piecewise_core.torch_compat.operators import changes_itself

ATEN = torch.ops.aten


@pytest.mark.parametrize("op", [ATEN.set_.source_Tensor, ATEN.resize_.default, ATEN.t_.default])
def test_tagged_operators_change_the_tensor_object(op):
    assert changes_itself(op)


@pytest.mark.parametrize("op", [ATEN.add_.Tensor, ATEN.add.Tensor, ATEN.t.default, len, None])
def test_others_do_not(op):
    assert not changes_itself(op)


def test_from_torch_2_14_on_setting_data_is_an_operator_without_the_tag():
    op = SimpleNamespace(tags=[], _schema=SimpleNamespace(name="aten::shallow_copy_data_"))
    assert changes_itself(op)
    if torch.__version__ >= (2, 14):
        assert changes_itself(ATEN.shallow_copy_data_.default)
