"""The platforms of this repository, each through the kit, as a vendor would run it."""

from __future__ import annotations

import pytest

from piecewise_core.testing import PlatformConformance, SimulatedPlatform


class TestSimulated(PlatformConformance):
    platform = SimulatedPlatform


@pytest.mark.inductor
class TestCpu(PlatformConformance):
    platform = "cpu"


class TestRocm(PlatformConformance):
    platform = "rocm"
