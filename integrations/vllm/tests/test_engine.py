"""With vLLM itself: engines that start where something is broken, or elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODEL = os.environ["PIECEWISE_VLLM_MODEL"]
HERE = Path(__file__).parent
ALL_CACHES = "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "PIECEWISE_CACHE_DIR"


def served(options: dict[str, Any] | None = None, **extra: str) -> dict[str, Any]:
    """What one engine says of itself, over caches that are warm."""
    return said("engine.py", json.dumps({"tokens": 16, **(options or {})}), **extra)


def said(script: str, argument: str, **extra: str) -> dict[str, Any]:
    """The JSON line of a script of this folder."""
    command = [sys.executable, str(HERE / script), MODEL, argument]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | extra)
    assert done.returncode == 0, done.stderr[-3000:]
    # vLLM says things behind it when an engine of its own process ends.
    line = next(x for x in reversed(done.stdout.splitlines()) if x.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found | {"stderr": done.stderr}


@pytest.fixture(scope="module")
def warm() -> dict[str, Any]:
    """An engine that is as it should be."""
    return served()


def test_a_second_start_loads_and_says_so(warm):
    stats = warm["stats"]
    assert (stats["compilations"], stats["cache_hits"], stats["unique_pieces"]) == (0, 3, 3)
    assert "5 pieces, 3 of them distinct: 0 compiled, 3 loaded, 2 shared" in warm["report"]
    assert "from the compile store, shared by 2 more" in warm["report"]


def test_the_store_s_command_lists_the_engine_s_pieces(warm):
    command = [sys.executable, "-m", "piecewise_core.cli.main", "cache", "ls"]
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=wide)
    assert done.stdout.count("model backbone piece") >= 3, done.stdout + done.stderr


def test_nothing_is_compiled_for_an_engine_that_is_eager(warm):
    found = served({"llm": {"enforce_eager": True}})
    assert found["tokens"] == warm["tokens"]
    assert (found["asked"], found["report"]) == (0, "nothing was compiled here")


def test_a_store_that_is_broken_costs_time_and_no_start(warm, tmp_path: Path):
    (tmp_path / "piecewise").write_text("no directory")
    found = served(PIECEWISE_CACHE_DIR=str(tmp_path / "piecewise"))
    assert found["tokens"] == warm["tokens"]
    assert found["stats"]["compilations"] == 3
    assert "the compile store cannot be used" in found["stderr"]


def test_an_engine_in_a_process_of_its_own_answers_for_itself(warm):
    found = served(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    assert found["tokens"] == warm["tokens"]
    assert found["report"] == "nothing was compiled here"
    assert "5 pieces, 3 of them distinct" in found["through_the_engine"][0]


def test_models_of_one_process_share_their_pieces(warm):
    found = served({"models": 2})
    assert found["tokens"] == warm["tokens"]
    stats = found["stats"]
    assert (stats["compilable_pieces"], stats["unique_pieces"], stats["cache_hits"]) == (10, 3, 3)


def test_data_parallel_ranks_share_the_store(warm, tmp_path: Path):
    empty = {name: str(tmp_path / name.lower()) for name in ALL_CACHES}
    local = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    found = said("ranks.py", "2", **empty, **local)
    assert found["tokens"] == warm["tokens"]
    counts = [re.search(r"(\d+) compiled, (\d+) loaded", report) for report in found["reports"]]
    compiled, loaded = zip(*[map(int, count.groups()) for count in counts if count], strict=True)
    # Each rank has all three; the first to ask for a piece compiles it, the other waits for it.
    assert (sum(compiled), sum(loaded)) == (3, 3)


def test_offline_ranks_of_a_dense_model_are_refused_by_vllm_itself_at_the_start():
    ranks = {"VLLM_DP_RANK": "0", "VLLM_DP_SIZE": "2", "VLLM_DP_MASTER_PORT": "29771"}
    for plugins in ({}, {"VLLM_PLUGINS": ""}):
        command = [sys.executable, str(HERE / "engine.py"), MODEL]
        env = os.environ | ranks | plugins
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode != 0
        assert "not supported/useful for dense models" in done.stderr


def test_the_backend_cuts_where_it_is_told_and_equal_layers_share_code(warm):
    cuts = "vllm::unified_attention_with_output", "vllm::unified_kv_cache_update"
    by_name = {"VLLM_PLUGINS": "", "VLLM_USE_AOT_COMPILE": "0"}
    found = served(
        {"compilation": {"mode": 2, "backend": "piecewise"}},
        **by_name,
        PIECEWISE_SPLITTING_OPS=",".join(cuts),
    )
    assert found["tokens"] == warm["tokens"]
    stats = found["stats"]
    assert (stats["compilable_pieces"], stats["unique_pieces"]) == (5, 3)
    assert len(found["graphs"]) == 1


def test_a_model_that_is_not_to_be_cut_is_one_piece(warm):
    found = served({"compilation": {"splitting_ops": []}})
    assert found["tokens"] == warm["tokens"]
    assert (found["stats"]["compilable_pieces"], found["asked"]) == (1, 1)
