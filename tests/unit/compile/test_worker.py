"""A worker compiles as the process that asks would, or not at all."""

from __future__ import annotations

import pytest

from piecewise_core.compile.worker import _refuse_differing
from piecewise_core.errors import CompileFailed


def test_a_worker_that_would_make_other_code_makes_none():
    here = {"torch.default_dtype": "torch.float32", "torch.threads": "1"}
    _refuse_differing(here, dict(here))
    for there in ({**here, "torch.threads": "2"}, {**here, "more": "x"}, {}):
        with pytest.raises(CompileFailed, match=r"differs in (torch\.threads|more|torch\.default)"):
            _refuse_differing(here, there)
    with pytest.raises(CompileFailed, match="and 4 more"):
        _refuse_differing({}, {str(i): "" for i in range(9)})
