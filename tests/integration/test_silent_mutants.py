"""A fixed sample of ``make mutants``: silent errors, and whether check="verify" finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from silent import __main__ as command
from silent.base import CUT, Mutant, Program, calls, platform
from silent.parts import Compiler
from silent.table import MUTANTS
from silent.trial import Outcome, is_real, tried

KINDS = {m.kind: [n for n in MUTANTS if n.kind == m.kind] for m in MUTANTS}
SAMPLE = [found[place] for found in KINDS.values() for place in (len(found) // 3, -1)]


def test_there_are_a_hundred_mutants_of_every_kind_that_is_known():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 100
    assert {m.front for m in MUTANTS} == {"compile", "record", "door"}
    assert set(KINDS) >= {
        *("baked scalar", "replaced list", "changed attribute", "attention reads host state"),
        *("leaked padding", "stale weights", "dropped wait", "foreign layout"),
    }


@pytest.mark.parametrize("mutant", SAMPLE, ids=lambda m: m.name)
def test_a_mutant_is_found_with_file_and_line(mutant):
    outcome = tried(mutant)
    assert outcome.caught, outcome
    kit = Path(command.__file__).parent
    assert outcome.kind == "noticed" or Path(outcome.line.partition(":")[0]).parent == kit


def test_what_is_no_mutant_is_told_apart():
    def model(x):
        return torch.softmax(x, -1)

    assert tried(Mutant("none", "right", lambda: Program(model, calls(4)))).kind == "unreal"


class Doubles(Compiler):
    def change(self, run, args, kept):
        return [o * 2 for o in run(*args)]


def test_a_mutant_counts_as_caught_only_with_a_line():
    def program():
        return Program(lambda x: torch.softmax(x, -1) + 1, calls(4))

    mutant = Mutant("none", "doubled", program, platform(compiler=Doubles), settings=CUT)
    assert is_real(mutant)
    assert tried(mutant).kind == "verified"
    assert not Outcome("missed", "silent/base.py:1").caught
    assert not Outcome("verified", "no line").caught


def test_the_command_prints_one_json_line_last(capsys):
    assert command.main(["--only", SAMPLE[0].name]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["mutants"], line["caught"], line["missed"]) == (1, 1, 0)
