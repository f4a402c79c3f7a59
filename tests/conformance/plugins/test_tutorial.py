"""The platform tutorial, done from an empty directory: its files, its commands, their output."""

from __future__ import annotations

import doctest
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "tutorial" / "write-a-platform.md"
_BLOCK = re.compile(
    r"^```(?:(?P<language>toml|python) file (?P<path>\S+)|(?P<console>console))\n"
    r"(?P<text>(?:.*\n)*?)```\n",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Command:
    """One command of the page and what it shows."""

    line: str
    shown: str


def steps(page: str):
    """The page's files and commands, in order."""
    for block in _BLOCK.finditer(page):
        if block["path"]:
            yield Path(block["path"]), block["text"]
            continue
        for part in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            yield Command(line, shown)


def own_lines(code: str) -> int:
    """Lines that somebody had to write: all but empty ones and comments."""
    return sum(1 for line in code.splitlines() if line.strip() and line.strip()[0] != "#")


class Reader:
    """Somebody who does what the page says, in an empty directory."""

    def __init__(self, environment, builder, processes, folder: Path) -> None:
        self.environment, self.builder, self.home = environment, builder, folder
        self.processes = processes
        self.where = folder
        self.transcript: list[str] = []

    def do(self, command: Command) -> None:
        printed = self._run(command.line)
        self.transcript += [f"$ {command.line}", printed]
        if command.shown and not same(command.shown, printed):
            pytest.fail(f"$ {command.line}\nshows\n{command.shown}\nand prints\n{printed}")

    def _run(self, line: str) -> str:
        program, *arguments = line.split()
        if program == "cd":
            self.where = (self.where / arguments[0]).resolve()
            return ""
        if line == "pip install .":
            self.environment.install([self.builder(self.where, self.home / "dist")])
            return ""
        if program == "sed":
            subprocess.run([program, *arguments], cwd=self.where, check=True)
            return ""
        front = {"piecewise": ["-m", "piecewise_core.cli.main"], "python": []}[program]
        words = (*front, *arguments)
        done = self.environment.forked(self.processes, *words, cwd=self.where)
        return done.stdout + done.stderr


def same(shown: str, printed: str) -> bool:
    plain = [
        re.sub(r"\d+\.\d+ (s|ms)\b", r"N \1", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
        for text in (shown, printed)
    ]
    return doctest.OutputChecker().check_output(*plain, doctest.ELLIPSIS)


@pytest.mark.long
def test_the_tutorial_works_from_an_empty_directory(
    fresh_environment, wheel_builder, fresh_processes, tmp_path
):
    reader = Reader(fresh_environment, wheel_builder, fresh_processes, tmp_path)
    done = 0
    for step in steps(PAGE.read_text(encoding="utf-8")):
        if isinstance(step, Command):
            reader.do(step)
            done += 1
        else:
            path, text = step
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
    print("\n".join(reader.transcript))  # pytest -rP shows it
    assert done == sum("$ " in line[:2] for line in PAGE.read_text().splitlines())
    assert done > 10


def test_a_platform_is_as_short_as_the_page_says():
    code = {str(p): t for p, t in (s for s in steps(PAGE.read_text()) if isinstance(s, tuple))}
    assert own_lines(code["acme/piecewise_acme.py"]) <= 25
    assert own_lines(code["board/piecewise_board.py"]) <= 40


def test_a_page_that_shows_what_is_not_printed_is_noticed():
    assert same("took 1.5 s\n...\nMet.\n", "took 0.2 s\nmany\nlines\nMet.\n")
    assert not same("Met.\n", "Not met.\n")
