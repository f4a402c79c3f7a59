"""``piecewise conformance``: does a platform keep the contract, level by level."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from piecewise_core.errors import ConfigError, PiecewiseError

if TYPE_CHECKING:
    from piecewise_core.testing.conformance.suite import PlatformConformance

__all__ = ["conformance"]

_FILE = click.Path(dir_okay=False, path_type=Path)


class _Refused(click.ClickException):
    """What cannot be run at all: exit code 2, as for wrong usage."""

    exit_code = 2


@click.command()
@click.argument("name", required=False)
@click.option(
    "--compiler",
    metavar="NAME",
    help="Test a compiler that comes without a platform, on a CPU: L0 and L1.",
)
@click.option(
    "--level",
    type=click.Choice(["L0", "L1", "L2", "L3"], case_sensitive=False),
    metavar="[L0|L1|L2|L3]",
    help="The level asked for; those below it are run too. Default: L3, of a compiler L1.",
)
@click.option("--report", type=_FILE, metavar="FILE", help="Write a JSON report.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML.")
@click.option(
    "--xfail",
    type=_FILE,
    metavar="FILE",
    help="Expected failures: a test a line, the reason behind a #.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="How often the endurance tests of L3 repeat.",
)
def conformance(
    name: str | None,
    compiler: str | None,
    level: str | None,
    report: Path | None,
    junit: Path | None,
    xfail: Path | None,
    rounds: int,
) -> None:
    """Test whether platform NAME keeps the contract, or a compiler by itself.

    NAME: of an installed platform, or module:attribute of one that no plugin announces yet.

    L0: contract, without hardware. L1: compile and dispatch. L2: capture. L3: endurance. What a
    platform does not declare is not claimed; what it declares and does not keep is a failure.

    Exits with 0 if the level is met, 1 if not, 2 for wrong usage or a plugin that does not load,
    3 if the hardware is not there.
    """
    for file in (report, junit):
        _check_writable(file)
    if (name is None) == (compiler is None):
        raise click.UsageError("name one platform, or one compiler with --compiler")
    level = level or ("L3" if compiler is None else "L1")
    suite = _suite(name, compiler, level, xfail, rounds)
    from rich.console import Console

    from piecewise_core.testing.conformance.report import make_report
    from piecewise_core.testing.conformance.running import RunBroken, run_suite
    from piecewise_core.testing.conformance.table import render

    gc.collect()
    gc.freeze()  # or every collection that tests ask for walks all of torch
    with _progress() as begins:
        try:
            results = run_suite(suite, junit=junit, begins=begins)
        except RunBroken as error:
            raise click.ClickException(str(error)) from error
    found = make_report(suite.subject(), level, results)
    if report is not None:
        report.write_text(found.to_json(), encoding="utf-8")
    render(found, Console())
    sys.exit(found.exit_code)


def _suite(
    name: str | None, compiler: str | None, level: str, xfail: Path | None, rounds: int
) -> type[PlatformConformance]:
    """The suite to run, its platform found and its xfail file read."""
    try:
        from piecewise_core.testing.conformance.running import suite_for
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pytest", "_pytest"):
            raise
        raise _Refused(
            "the kit needs pytest, which is not installed; pip install 'piecewise-core[testing]'"
        ) from error
    from piecewise_core.testing.conformance.compilers import CompilerUnderTest

    subject = name if compiler is None else CompilerUnderTest(compiler)
    suite = suite_for(subject, level=level, xfails=xfail and xfail.absolute(), rounds=rounds)
    try:
        suite.subject()
        suite.expected()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except PiecewiseError as error:
        raise _Refused(f"{type(error).__name__}: {error}") from error
    return suite


def _check_writable(file: Path | None) -> None:
    """Find out before anything runs that a file cannot be written."""
    if file is None:
        return
    try:
        if file.exists():
            with file.open("a", encoding="utf-8"):
                return
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            return
    except OSError as error:
        raise click.UsageError(
            f"cannot write {file}: {error.strerror or error}; name a file in a directory that "
            "exists and is yours"
        ) from error


@contextmanager
def _progress() -> Iterator[Any]:
    """Show the test that runs, where a person looks."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    with console.status("starting") as status:
        yield lambda name: status.update(name.removeprefix("test_").replace("_", " "))
