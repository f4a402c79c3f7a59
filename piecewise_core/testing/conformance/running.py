"""Run a suite through pytest in this process, away from the settings of any project."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from piecewise_core.errors import PiecewiseError
from piecewise_core.testing.conformance import suite as home
from piecewise_core.testing.conformance.marks import LEVELS, Spec, spec_of
from piecewise_core.testing.conformance.report import TestResult
from piecewise_core.testing.conformance.suite import PlatformConformance

__all__ = ["RunBroken", "run_suite", "suite_for"]

_FOREIGN = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
_NO_PLUGINS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"


class RunBroken(PiecewiseError):
    """Pytest itself ended early: an interrupt, or an error outside of the tests."""


def suite_for(
    platform: Any, *, level: str = LEVELS[-1], xfails: Path | None = None, rounds: int | None = None
) -> type[PlatformConformance]:
    """The suite that a vendor would have written for ``platform``."""
    settings: dict[str, Any] = {"platform": platform, "level": level, "xfails": xfails}
    if not isinstance(platform, (str, type)) and callable(platform):
        settings["platform"] = staticmethod(platform)
    if rounds is not None:
        settings["rounds"] = rounds
    return type("TestPlatform", (PlatformConformance,), settings)


def run_suite(
    suite: type[PlatformConformance],
    *,
    junit: Path | None = None,
    begins: Callable[[str], None] = lambda name: None,
    chosen: Callable[[Spec], bool] = lambda spec: True,
) -> tuple[TestResult, ...]:
    """Run every test of ``suite`` up to its level, in order.

    ``junit``: where pytest writes its XML. ``begins``: told the name of each test before it runs.
    ``chosen``: which tests to run. Raises RunBroken.
    """
    file = Path(home.__file__)
    listener = _Listener(suite, begins, chosen)
    args = [str(file), f"--rootdir={file.parent}", "-c", os.devnull, "--noconftest"]
    args += ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:logging"]
    if junit is not None:
        args += [f"--junitxml={junit}", "-o", "junit_family=xunit2", "-o", "junit_logging=no"]
    with _alone():
        code = pytest.main(args, plugins=[listener])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RunBroken(
            f"the run ended early with {code!r} behind {len(listener.results)} tests"
            f"{listener.trouble}"
        )
    return tuple(listener.results)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Without the plugins and options that the user's environment adds to every pytest run."""
    before = {name: os.environ.pop(name, None) for name in (*_FOREIGN, _NO_PLUGINS)}
    os.environ[_NO_PLUGINS] = "1"
    try:
        yield
    finally:
        del os.environ[_NO_PLUGINS]
        os.environ.update({name: value for name, value in before.items() if value is not None})


class _Listener:
    """Hands the suite to pytest, and takes down how its tests end."""

    def __init__(
        self,
        suite: type[PlatformConformance],
        begins: Callable[[str], None],
        chosen: Callable[[Spec], bool],
    ) -> None:
        self._suite = suite
        self._begins = begins
        self._chosen = chosen
        self.results: list[TestResult] = []
        self.trouble = ""

    def pytest_pycollect_makemodule(self, module_path: Path, parent: Any) -> pytest.Module:
        """The module that pytest collects: one class in it, the suite."""
        module: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
        found = ModuleType(module_path.stem)
        vars(found)["TestPlatform"] = self._suite  # whatever it is called, pytest takes it
        module.obj = found
        return module

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what is above the level asked for, or not chosen."""
        highest = LEVELS.index(self._suite.level)
        items[:] = [
            item
            for item in items
            if (spec := spec_of(item.function)) is None
            or (LEVELS.index(spec.level) <= highest and self._chosen(spec))
        ]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell who listens that a test begins."""
        self._begins(nodeid.rpartition("::")[2])

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Keep what went wrong in pytest."""
        self.trouble = f": {excrepr}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down one test."""
        if report.when != "call" and report.outcome == "passed":
            return
        found = dict(report.user_properties)
        name = report.nodeid.rpartition("::")[2]
        spec = self._suite.specs().get(name)
        if report.when == "call" and "conformance" in found:
            outcome, reason = str(found["conformance"]), str(found["reason"])
        else:
            outcome, reason = "failed", report.longreprtext
        self.results.append(
            TestResult(
                name=name,
                level=spec.level if spec else "",
                property=spec.property if spec else "a test that is not of the kit",
                outcome=outcome,
                reason=reason,
                seconds=round(report.duration, 3),
                overridden=str(found["overridden"]) if "overridden" in found else None,
            )
        )
