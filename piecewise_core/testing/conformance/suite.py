"""The class that a vendor subclasses."""

from __future__ import annotations

from piecewise_core.testing.conformance.level0 import Level0
from piecewise_core.testing.conformance.level1 import Level1
from piecewise_core.testing.conformance.level1_answers import Answers
from piecewise_core.testing.conformance.level1_memory import Ownership
from piecewise_core.testing.conformance.level1_numbers import Numbers
from piecewise_core.testing.conformance.level1_parts import Parts
from piecewise_core.testing.conformance.level1_runtime import Runtimes
from piecewise_core.testing.conformance.level2_extras import Extras
from piecewise_core.testing.conformance.level2_faults import Faults
from piecewise_core.testing.conformance.level2_forks import Forks
from piecewise_core.testing.conformance.level2_inputs import Inputs
from piecewise_core.testing.conformance.level2_memory import Memory
from piecewise_core.testing.conformance.level2_pools import Pools
from piecewise_core.testing.conformance.level2_replay import Replays
from piecewise_core.testing.conformance.level2_reset import Resets
from piecewise_core.testing.conformance.level2_sharing import Sharing
from piecewise_core.testing.conformance.level2_streams import Streams
from piecewise_core.testing.conformance.level3 import Level3

__all__ = ["PlatformConformance"]


# Pytest takes the tests of the last base first: levels run from L0 up.
class PlatformConformance(
    Level3,
    Forks,
    Sharing,
    Inputs,
    Faults,
    Resets,
    Memory,
    Pools,
    Streams,
    Extras,
    Replays,
    Ownership,
    Numbers,
    Parts,
    Runtimes,
    Answers,
    Level1,
    Level0,
):
    """Everything that a platform must keep, as tests.

    A vendor's whole test file is::

        from piecewise_core.testing import PlatformConformance

        class TestAcme(PlatformConformance):
            platform = "acme"

    ``platform``: the name of an installed platform, a PlatformInfo, a Platform, or a function or
    class that makes one (then each test has its own). ``level``: the highest to try, "L3" where
    nothing is said. ``xfails``: a file of expected failures, beside the test file. ``rounds``: how
    often the endurance tests repeat. ``seconds``: how long a test of another level may take.

    A test that does not apply is skipped with its reason: "not claimed" where the platform does
    not declare what it is about, "no hardware", "blocked" behind another failure.
    """
