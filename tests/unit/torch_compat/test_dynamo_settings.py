"""Settings of Dynamo's that hold functions: traces find them, and torch's log can sort them."""

from __future__ import annotations

import functools
import json

from piecewise_core.torch_compat.dynamo import FunctionsSetting, dynamo_config


def test_torch_finds_the_functions_and_logs_a_set_that_it_can_sort():
    said_once = [functools.lru_cache(print), functools.lru_cache(repr)]
    with dynamo_config.patch(ignore_logger_methods=FunctionsSetting(said_once)):
        assert all(
            any(f is each for each in dynamo_config.ignore_logger_methods) for f in said_once
        )
        copied = dynamo_config.get_config_copy()
    logged = {
        name: sorted(copied[name])
        for name in ("ignore_logger_methods", "ignore_logging_functions")
        if name in copied
    }
    assert logged
    json.dumps(logged)
    assert not dynamo_config.ignore_logger_methods
