"""What the entry point names: announces the platform and imports nothing heavy."""

from importlib.util import find_spec

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe


@hookimpl
def piecewise_platforms():
    """Models whose tensors are on device "vulkan"."""
    yield PlatformInfo("vulkan", "vulkan", (1, 1), probe, create)


def probe():
    """Say whether torchvulkan is there; asking for a device would initialise the driver."""
    found = find_spec("torchvulkan") is not None
    return Probe(found, f"torchvulkan is {'' if found else 'not '}installed")


def create():
    """Import torch and make the platform."""
    from piecewise_vulkan.platform import VulkanPlatform

    return VulkanPlatform()
