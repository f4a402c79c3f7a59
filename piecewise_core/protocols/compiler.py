"""The compiler of a platform: one piece in, a callable out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import runtime_checkable

if TYPE_CHECKING:
    import torch

    from piecewise_core.config import Config
    from piecewise_core.protocols.values import CompiledGraph

__all__ = ["CompilerAdaptor", "CompilerExtras", "Passes"]

Passes = Iterable[Callable[["torch.fx.GraphModule"], None]]
"""Graph passes: each changes a piece's graph in place, before it is compiled."""


@runtime_checkable
class CompilerAdaptor(Protocol):
    """Turns one piece into a callable. Called from one thread at a time, never inside a capture.

    ``name``: as in ``Config(compiler=...)``. The methods of CompilerExtras are optional. A
    complete adaptor::

        class Eager:
            name = "eager"

            def compile(self, graph, example_inputs, *, key, config):
                return CompiledGraph(graph.forward)

            def hash_factors(self):
                return {}
    """

    name: str

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph``; core gives it up (it may be changed freely).

        ``example_inputs``: one per placeholder, in order: SymInt or int for the sizes, then fake
        tensors with the shapes, strides, dtypes and device of the real ones. The value ranges of
        their symbols are the sizes to compile for, ends inclusive; the code must hold for each.
        ``key``: names piece, sizes and all else that the code depends on. ``config``: the model's.

        The call runs under ``torch.inference_mode()`` and a tracing context that holds the fake
        mode of the inputs. Raise anything on failure: core adds piece, line, sizes and who made
        the compiler (CompileFailed). CompilerUnavailable says that the compiler's tools are
        missing, so that core goes on uncompiled with one warning. PieceDeclined leaves this piece
        alone: it runs as written, counted as declined.
        """
        ...

    def hash_factors(self) -> Mapping[str, str]:
        """Whatever else changes the artifact: versions, flags, instruction set. Short strings.

        No path, rank, device index, time or process: what changes them would cost a compilation.
        """
        ...


class CompilerExtras(Protocol):
    """What a CompilerAdaptor may have besides; each says what core does without it."""

    def load(self, handle: bytes) -> CompiledGraph:
        """The code whose ``CompiledGraph.handle()`` gave these bytes, ready to run.

        In any process on a like machine, without compiling. Raise anything when the bytes do not
        fit: core compiles instead. Bytes come from a store that checks them first, and may be
        trusted as code is. Without: nothing is persisted and nothing compiled in the background.
        """
        ...

    def configure(self, options: Mapping[str, Any]) -> None:
        """Take what concerns the compiler from a model's settings: fields of its Config.

        ``options``: field name -> plain value, as ``Config.to_dict()`` gives them. Called once
        per compiled model and process, before its first ``compile`` or ``load``. An adaptor that
        serves several models is told of each; what it keeps must not change the code of others.
        ConfigError refuses a setting. Without: ``compile`` sees the Config and nothing is set up.
        """
        ...

    def passes(self) -> Passes:
        """Graph passes to run over every piece, before those of ``piecewise_passes``.

        Called once per compiled model. Without: none.
        """
        ...
