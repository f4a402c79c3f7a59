"""``piecewise bench``: eager, torch.compile and piecewise on the user's model and traffic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from piecewise_core.cli.subject import Cannot, config_of, made_by, path_option, refused

if TYPE_CHECKING:
    from piecewise_core.cli.benchcalls import Calls
    from piecewise_core.cli.benchruns import Runner
    from piecewise_core.planner.histogram import Histogram

__all__ = ["bench"]

_EVERY = 3.0
"""Seconds between lines that say how far it is."""


@click.command()
@click.argument("subject", metavar="MODULE:FUNCTION")
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Fields of a Config, as TOML or JSON by the file's suffix.",
)
@click.option("--traffic", metavar="FILE", help="Calls by their sizes, as for `piecewise plan`.")
@click.option("--sizes", metavar="LIST", help="In place of it: 1,7,32, or 4x128,8x128.")
@click.option("--most", default=12, show_default=True, help="Sizes of the traffic to measure.")
@click.option("--platform", metavar="NAME", help="The platform; by default that of the model.")
@click.option("--no-torch-compile", is_flag=True, help="Leave torch.compile out.")
@click.option(
    "--html", "html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@path_option
def bench(
    subject: str,
    config_file: str | None,
    traffic: str | None,
    sizes: str | None,
    most: int,
    platform: str | None,
    no_torch_compile: bool,
    html: Path | None,
    as_json: bool,
    paths: tuple[str, ...],
) -> None:
    """Time a model as it is, by torch.compile and by piecewise, on the calls that it gets.

    FUNCTION takes nothing and returns (model, make), where make(*sizes) returns the arguments of a
    call, or (model, args) or (model, args, kwargs): one call, whose dynamic dims are cut, or their
    rows repeated, to each size. Calls change no state of the model. Gradients are off.

    Results are compared with those of the model as it is before anything is timed; what differs is
    left out, and said. Exits with 0, with 1 if piecewise was left out, 2 where nothing can be
    measured.
    """
    import torch

    if html is not None and not html.absolute().parent.is_dir():  # said before minutes of work
        raise Cannot(f"{html} cannot be written: there is no directory {html.parent}")
    config = config_of(config_file)
    calls = _calls(made_by(subject, paths), subject, config)
    with torch.inference_mode():
        found = _measured(
            calls,
            subject,
            config,
            _traffic(calls, config, traffic, sizes),
            most,
            platform,
            _Teller(),
            torch_compile=not no_torch_compile,
        )
    _show(found, html, as_json)
    sys.exit(1 if "piecewise" in found.failed else 0)


def _calls(made: Any, subject: str, config: Any) -> Calls:
    from piecewise_core.cli.benchcalls import Calls

    return Calls(made, subject, config)


def _traffic(calls: Calls, config: Any, file: str | None, sizes: str | None) -> Histogram:
    """Which calls to make."""
    from piecewise_core.planner.histogram import Histogram
    from piecewise_core.planner.reading import read_histogram

    names = tuple(dim.name for dim in config.dims)
    if file is not None and sizes is not None:
        raise Cannot("--traffic and --sizes both say which calls to make; give one of them")
    if file is not None:
        found: Histogram = refused(lambda: read_histogram(file))
        return found
    if sizes is not None:
        return Histogram.of(_listed(sizes), names)
    return Histogram(names, {calls.own(): 1})


def _listed(sizes: str) -> list[tuple[int, ...]]:
    try:
        return [tuple(map(int, part.split("x"))) for part in sizes.split(",")]
    except ValueError:
        raise Cannot(f"--sizes {sizes!r}: write 1,7,32, or with several dims 4x128,8x128") from None


def _measured(
    calls: Calls,
    subject: str,
    config: Any,
    traffic: Histogram,
    most: int,
    platform: str | None,
    tell: Callable[[str], None],
    *,
    torch_compile: bool,
) -> Any:
    from piecewise_core.cli.benchcalls import within
    from piecewise_core.cli.benchruns import Measured, measure

    chosen, note = within(traffic, config, most)
    runners = _runners(calls, config, platform, torch_compile=torch_compile)
    first = calls.of(next(iter(chosen)))
    try:
        calls.model(*first[0], **first[1])
    except Exception as error:
        raise Cannot(f"the model as it is raised {type(error).__name__}: {error}") from error
    times, failed = measure(runners, calls, chosen, tell)
    if "eager" in failed:
        raise Cannot(
            f"the model gives different results for the same call ({failed['eager']}); nothing can "
            "be compared: seed what it draws, and let calls change no state"
        )
    names = tuple(dim.name for dim in config.dims)
    device = next((str(t.device) for t in _tensors(calls.model, first)), "cpu")
    return Measured(subject, names, device, times, failed, (note,) if note else ())


def _runners(
    calls: Calls, config: Any, platform: str | None, *, torch_compile: bool
) -> list[Runner]:
    import torch

    import piecewise_core as pw
    from piecewise_core.cli.benchruns import Runner

    found = [Runner("eager", calls.model)]
    if torch_compile:
        found.append(Runner("torch.compile", torch.compile(calls.model)))
    fast = refused(lambda: pw.compile(calls.model, config, platform))
    return [*found, Runner("piecewise", fast)]


def _tensors(model: Any, call: Any) -> list[Any]:
    import torch

    held = list(model.parameters())[:1] if isinstance(model, torch.nn.Module) else []
    return held + [value for value in (*call[0], *call[1].values()) if hasattr(value, "device")]


def _show(found: Any, html: Path | None, as_json: bool) -> None:
    from piecewise_core.cli.benchreport import page, table

    click.echo(found.to_json() if as_json else table(found))
    if html is not None:
        try:
            html.write_text(page(found), encoding="utf-8")
        except OSError as error:
            raise Cannot(f"{html} cannot be written: {error.strerror or error}") from error


class _Teller:
    """Says on standard error what is done, every few seconds."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            click.echo(f"{now - self._begun:.0f} s: {what}", err=True)
