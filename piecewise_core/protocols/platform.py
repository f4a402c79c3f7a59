"""One kind of device, announced and put together; and what runs a piece on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import runtime_checkable

if TYPE_CHECKING:
    import torch

    from piecewise_core.config import Config
    from piecewise_core.protocols.compiler import CompilerAdaptor
    from piecewise_core.protocols.device import DeviceRuntime
    from piecewise_core.protocols.graphs import GraphDriver
    from piecewise_core.protocols.values import Capabilities, Probe

__all__ = ["AbstractPiecewiseBackend", "Platform", "PlatformExtras", "PlatformInfo"]


@runtime_checkable
class Platform(Protocol):
    """One kind of device, ready to work.

    ``graphs``: None where the device has no static graphs. ``compiler``: what
    ``Config(compiler=None)`` means here. Attributes are read once per compiled model and must not
    change. What PlatformExtras has is optional.
    """

    device: DeviceRuntime
    graphs: GraphDriver | None
    compiler: CompilerAdaptor
    capabilities: Capabilities


@dataclass(frozen=True)
class PlatformInfo:
    """One platform as its plugin announces it; cheap, holds no device.

    ``name``: unique, lower case. ``device_type``: torch's device type ("cpu", "cuda").
    ``api_version``: the API_VERSION it was written for. ``probe``: must not raise and must not
    initialise a device. ``create``: imports the device stack and returns the Platform; called
    once, only for the platform that was selected.
    """

    name: str
    device_type: str
    api_version: tuple[int, int]
    probe: Callable[[], Probe]
    create: Callable[[], Platform]


class PlatformExtras(Protocol):
    """What a Platform may have besides; each says what core does without it.

    Attributes: ``name`` and ``device_type``, strings as in PlatformInfo, which an instance given
    as ``platform=`` goes by (without: the class's name, and the device the model is on).
    ``piecewise_backend``, a class in place of core's PiecewiseBackend, with the shape of
    AbstractPiecewiseBackend (without, and for None: core's).
    """

    def self_check(self) -> Mapping[str, str]:
        """Facts for `piecewise doctor`; raises what is wrong. May initialise the device.

        Without: doctor only computes.
        """
        ...


class AbstractPiecewiseBackend(Protocol):
    """What runs one compilable piece; a platform may supply its own class.

    Shaped like vLLM's interface of the same name, with our config and owner in place of its.
    """

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        config: Config,
        graph_pool: Any,
        piecewise_compile_index: int,
        total_piecewise_compiles: int,
        sym_shape_indices: list[int],
        compiled_graph_for_general_shape: Callable[[], Callable[..., Any]],
        backend: Any,
        **kwargs: Any,
    ) -> None:
        """Set up for one piece; compiles nothing.

        ``graph``: the piece. ``graph_pool``: the pool that its graphs are captured into; None
        without graphs. Core sets the attribute anew when ``release()`` freed that pool.
        ``piecewise_compile_index`` of ``total_piecewise_compiles``: this piece's place among
        the compilable ones. ``sym_shape_indices``: positions in ``*args`` that hold the sizes,
        one per dim. ``compiled_graph_for_general_shape``: called without arguments it returns
        the graph that holds for every size, compiled on first need. ``backend``: the owner,
        which compiles and keeps the books. ``kwargs``: reserved for later versions; accept and
        ignore.
        """
        ...

    def __call__(self, *args: Any) -> Any:
        """Run the piece: the general graph first, then what was compiled for the size in args."""
        ...
