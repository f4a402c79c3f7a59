"""Vulkan devices by torchvulkan: no streams that torch can choose, no graphs, torch's kernels."""

import torchvulkan

from piecewise_core.protocols import Capabilities, CompiledGraph, NoStreams


class Runtime(NoStreams):
    """One queue, in the order of calls."""

    def synchronize(self):
        """Wait until the queue is empty."""
        torchvulkan.synchronize()


class Compiler:
    """Runs a piece's own operators."""

    name = "vulkan"

    def compile(self, graph, example_inputs, *, key, config):
        """The piece as it is."""
        return CompiledGraph(graph.forward)

    def hash_factors(self):
        """Nothing is generated."""
        return {}


class VulkanPlatform:
    """The first device that the Vulkan driver lists."""

    name = device_type = "vulkan"
    device, graphs, compiler = Runtime(), None, Compiler()
    capabilities = Capabilities()

    def self_check(self):
        """What the device is called. Raises where the driver has none."""
        return {"device": torchvulkan.get_device_name()}
