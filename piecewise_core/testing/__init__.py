"""What tests of piecewise, and of what is built on it, stand on."""

from piecewise_core.testing.simulated.platform import SimulatedPlatform

__all__ = ["SimulatedPlatform"]
