"""vLLM's static-graph wrapper over piecewise's driver."""

from typing import Any

import torch
from vllm.compilation import monitor
from vllm.compilation.counter import compilation_counter
from vllm.compilation.cuda_graph import CUDAGraphWrapper
from vllm.compilation.cudagraph_pool import capture_pool
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.offloader.base import get_offloader
from vllm.platforms import current_platform

from piecewise_core.building_blocks import same_addresses
from piecewise_vllm.engine import compiler, say

__all__ = ["PiecewiseGraphWrapper"]


class PiecewiseGraphWrapper(CUDAGraphWrapper):  # type: ignore[misc]
    """Captures a piece at its first call for a batch, replays it at the others.

    Where vLLM trusts that inputs lie where they lay when the piece was captured, this looks, at
    every replay: a call that finds them elsewhere runs the compiled piece. So do calls of a batch
    that could not be captured, and pieces behind such a one, whose inputs then lie elsewhere.
    vLLM knows it as one of its own wrappers: it lends pools to it, and clears its graphs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._graphs = compiler(str(current_platform.device_type), True).graphs
        self._served: dict[int, tuple[Any, ...]] = {}
        self._moved = False

    def clear_graphs(self) -> None:
        for *_, batch, graph in self._served.values():
            self._graphs.release(graph, batch)
        self._served.clear()
        super().clear_graphs()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or not is_forward_context_available():
            return self.runnable(*args, **kwargs)
        context = get_forward_context()
        if context.cudagraph_runtime_mode is not self.runtime_mode:
            return self.runnable(*args)
        batch, graphs = context.batch_descriptor, self._graphs
        turn = graphs.turn
        if turn[0] is not batch:
            turn = graphs.take_turn(batch)
            if not monitor.cudagraph_capturing_enabled:
                say(graphs)
        served = self._served.get(turn[1])
        if served is None:
            return self._first(batch, turn[1], args)
        replay, output, addresses, places, onload, *_ = served
        if not same_addresses(list(args), addresses, places):
            return self._elsewhere(args)
        onload()
        replay()
        return output

    def _first(self, batch: Any, number: int, args: tuple[Any, ...]) -> Any:
        """Capture the piece, where vLLM has its time for that."""
        mine, offloader = self._graphs, get_offloader()
        if batch in mine.dropped or not monitor.cudagraph_capturing_enabled:
            return self.runnable(*args)

        def run() -> Any:
            output = self.runnable(*args)
            offloader.join_after_forward()
            return output

        with capture_pool(self.graph_pool, self.vllm_config) as pool:
            offloader.sync_prev_onload()
            made = mine.capture(run, pool, batch)
        if made is None:
            return self.runnable(*args)
        graph, output, weak = made
        at = [x.data_ptr() if isinstance(x, torch.Tensor) else None for x in args]
        places = [i for i, address in enumerate(at) if address is not None]
        replay = mine.declared.replayer(graph)
        self._served[number] = replay, weak, at, places, offloader.sync_prev_onload, batch, graph
        compilation_counter.num_cudagraph_captured += 1
        return output  # not the weak one: what is captured next must not be given its memory

    def _elsewhere(self, args: tuple[Any, ...]) -> Any:
        if not self._moved:
            self._moved = True
            self._graphs.tell("inputs of a captured piece moved; it runs uncaptured")
        return self.runnable(*args)
