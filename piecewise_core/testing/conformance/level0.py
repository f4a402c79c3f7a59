"""L0: the contract, on a machine without the hardware."""

from __future__ import annotations

from piecewise_core.errors import ApiVersionMismatch, NoPlatform, PluginError
from piecewise_core.plugins import select
from piecewise_core.plugins.announce import check_api_version
from piecewise_core.protocols import API_VERSION
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.fresh import Answer, ask_fresh
from piecewise_core.testing.conformance.judging import FOUND, KEEPS, PROBED
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["Level0"]

_HOOK = "piecewise_platforms"
_LIGHT = "test_nothing_heavy_is_imported"
_API = "test_the_api_version_is_served"


class Level0(Conformance):
    """Entry point, versions, signatures, and that nothing happens too early."""

    @conformance("L0", "PlatformConformance")
    def test_overrides_have_reasons(self, case: Case) -> None:
        """Every test of the kit that a subclass replaces says why."""
        listed = case.xfails
        silent = [name for name in case.suite.unexplained if name not in listed]
        case.require(
            not silent,
            f"looked for tests of the kit that {case.suite.__name__} replaces or removes",
            "each is marked with @overrides(reason), or listed in the xfail file",
            f"without a reason: {', '.join(silent)}",
            "put @overrides('why') on each, from piecewise_core.testing, or delete it",
        )

    @conformance("L0", _HOOK)
    def test_the_platform_is_found(self, case: Case) -> None:
        """The platform is found by its name, its plugin loads, and nobody else has that name."""
        subject = case.subject  # raises what is wrong, in core's words
        case.require(
            subject.name and subject.device_type,
            f"looked for platform {case.suite.platform!r}",
            "a name and a device type",
            f"name {subject.name!r}, device type {subject.device_type!r}",
            "give PlatformInfo, or the Platform, a name and a device type",
        )

    @conformance("L0", _HOOK, claims=("entry point",), relies_on=(FOUND,))
    def test_the_entry_point_has_the_platform_s_name(self, case: Case) -> None:
        """The entry point is called as its platform, so that a choice by name loads one plugin."""
        entry = case.subject.origin
        case.require(
            entry.name == case.subject.name,
            f"read the entry points of group piecewise of {entry}",
            f"one named {case.subject.name}",
            f"{entry.name} = {entry.module!r}",
            "rename the entry point in pyproject.toml, or the platform in PlatformInfo",
        )

    @conformance("L0", _HOOK, claims=("entry point",), relies_on=(FOUND,))
    def test_nothing_heavy_is_imported(self, case: Case) -> None:
        """Importing the plugin and asking what it brings imports no torch and no array library."""
        heavy = _announced(case).found["heavy"]
        case.require(
            not heavy,
            f"imported {case.subject.origin.module} and called its hook in a fresh interpreter",
            "none of torch, numpy, triton and their like is imported",
            f"imported: {', '.join(heavy)}",
            "move those imports into create(), and into probe() what it cannot do without",
        )

    @conformance("L0", _HOOK, claims=("entry point",), relies_on=(FOUND, _LIGHT))
    def test_importing_it_prints_nothing(self, case: Case) -> None:
        """Importing the plugin and asking what it brings writes nothing to the terminal."""
        answer = _announced(case)
        printed = "".join(answer.found["printed"]) + answer.printed
        case.require(
            not printed.strip(),
            f"imported {case.subject.origin.module} and called its hook in a fresh interpreter",
            "nothing on stdout or stderr",
            printed.strip(),
            "log with logging.getLogger(__name__) at DEBUG instead of printing",
        )

    @conformance("L0", _HOOK, claims=("entry point",), relies_on=(FOUND, _LIGHT))
    def test_importing_it_changes_nothing(self, case: Case) -> None:
        """Importing the plugin leaves the process as it was: no variables, handlers, threads."""
        changed = _announced(case).found["changed"]
        case.require(
            not changed,
            f"imported {case.subject.origin.module} and called its hook in a fresh interpreter",
            "the process is as before",
            f"changed: {', '.join(changed)}",
            "move it into create(), which runs only when the platform is selected",
        )

    @conformance("L0", "PlatformInfo.api_version", claims=("PlatformInfo",), relies_on=(FOUND,))
    def test_the_api_version_is_served(self, case: Case) -> None:
        """The API version is of core's major, and of no newer minor."""
        info = case.subject.info
        if info is None:
            raise NotClaimed("a Platform was given, which nobody announces")
        try:
            check_api_version(info, case.subject.origin)
        except ApiVersionMismatch as error:
            case.require(
                False,
                "compared PlatformInfo.api_version with piecewise_core.protocols.API_VERSION",
                f"({API_VERSION[0]}, n) with n <= {API_VERSION[1]}",
                str(error),
                "announce the version whose Protocols the plugin was written against",
            )

    @conformance("L0", "PlatformInfo.probe", claims=("PlatformInfo",), relies_on=(FOUND,))
    def test_the_probe_answers(self, case: Case) -> None:
        """The probe returns a Probe with a reason, raises nothing and initialises nothing here."""
        answer = case.subject.probe()  # raises ProbeFailed, ProbeInitialisedDevice, PluginError
        case.require(
            isinstance(answer.reason, str) and len(answer.reason.split()) > 1,
            "called probe()",
            "Probe.reason is a sentence for people, whether the hardware is there or not",
            repr(answer.reason),
            'return Probe(False, "no Acme driver: there is no /dev/acme") or the like',
        )

    @conformance("L0", "PlatformInfo.probe", claims=("PlatformInfo",), relies_on=(PROBED,))
    def test_the_probe_gives_the_same_answer_twice(self, case: Case) -> None:
        """A second probe finds what the first one found."""
        info, first = case.subject.info, case.subject.probe()
        second = info.probe() if info is not None else first
        case.require(
            second.available == first.available,
            "called probe() twice",
            f"available={first.available} both times",
            f"available={second.available} ({second.reason}) the second time",
            "let the probe hold nothing open that the next one needs",
        )

    @conformance("L0", "Platform", relies_on=(FOUND, PROBED))
    def test_what_create_gives_keeps_the_protocols(self, case: Case) -> None:
        """What create() returns has every required method, with the parameters that core passes."""
        if case.subject.probe().available:
            case.subject.make()  # raises PluginError that lists every difference
            return
        try:
            case.subject.make()
        except PluginError as error:
            if error.__cause__ is not None:  # create() itself failed, for want of hardware
                raise NotClaimed(f"create() needs the hardware: {error.__cause__}") from None
            raise

    @conformance("L0", "PlatformInfo.probe", claims=("entry point",), relies_on=(PROBED, KEEPS))
    def test_the_probe_initialises_no_device(self, case: Case) -> None:
        """After a probe the process holds no device: a forked process can still use it."""
        found = ask_fresh(case.subject, "probe").found
        case.require(
            not found["initialised"] and found["forked"] in (None, "fine"),
            "called probe() in a fresh interpreter, then forked and used the device there",
            "torch holds no device context, and the forked process computes",
            f"initialised: {', '.join(found['initialised']) or 'none'}; "
            f"in the forked process: {found['forked']}",
            "ask the kernel driver or a management library; create no context in probe()",
        )

    @conformance(
        "L0", "PlatformInfo.create", claims=("entry point", "hardware absent"), relies_on=(PROBED,)
    )
    def test_missing_hardware_is_a_clear_error(self, case: Case) -> None:
        """Without its hardware, create() works or raises an error with a text; it ends nothing."""
        found = ask_fresh(case.subject, "create").found
        raised = found["raised"]
        case.require(
            raised is None or (not found["ends"] and len(found["text"].split()) > 2),
            "called create() in a fresh interpreter on this machine, which has no such hardware",
            "a Platform, or an Exception that says what is missing",
            f"{raised}: {found['text'] or '(no text)'}",
            "raise piecewise_core.errors.PlatformError naming what is missing and how to get it",
        )

    @conformance("L0", "PlatformInfo.probe", claims=("entry point",), relies_on=(KEEPS, _API))
    def test_selecting_it_by_name_works_or_says_why(self, case: Case) -> None:
        """Asked for by name it is selected; without hardware the error has the probe's reason."""
        subject, probe = case.subject, case.subject.probe()
        wanted = f"{subject.name}@{subject.origin.project}"
        try:
            said = f"selected {select(wanted).info.name!r}"
        except NoPlatform as error:
            said = str(error)
        expected = probe.reason if not probe.available else f"selected {subject.name!r}"
        case.require(
            expected in said,
            f"selected a platform by name, {wanted!r}",
            f"an error that has the probe's reason: {probe.reason}"
            if not probe.available
            else expected,
            said,
            "let probe() tell the same thing every time",
        )


def _announced(case: Case) -> Answer:
    """What one fresh interpreter found out, for three tests."""
    return case.once("announce", lambda: ask_fresh(case.subject, "announce", case.environ))
