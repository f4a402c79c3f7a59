"""piecewise-vllm's Python per piece, by a stand-in for vLLM's calls: no vLLM takes part.

    python benchmarks/vllm_pieces.py [--quick]
    python benchmarks/vllm_pieces.py --simulated    # no GPU: does the script itself work

The toy decoder, and one of Llama-1B's sizes, is cut as vLLM cuts, compiled by the plugin's
compiler, captured and replayed by its graph wrapper, called as vLLM's runner calls
(tests/kit/vllm_standin.py: batch descriptor, forward context). The floor is a flat function of the
same replays and operator calls. What is vLLM's own share of a forward is not measured. Any torch
that piecewise takes will do, also one that vLLM 0.32 does not. The last line is one JSON object;
exit status 1 if a replay's numbers are not those of the model as written.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = 2.0
"""Microseconds of our Python for a piece, beyond its replay."""

SHAPES = {"toy decoder": (32, 64), "Llama-1B's sizes": (16, 2048)}
"""Layers and hidden size. 32 layers are 33 pieces, which the target is for."""

BATCH = 8
ERROR = 0.1
"""Of a result's largest number: rounding stays below it, inputs of another call make about 1."""


class Cut:
    """The decoder as an engine has it: pieces compiled and wrapped, run by its split graph."""

    def __init__(self, model: Any, given: tuple[Any, ...], most: int) -> None:
        import torch
        from toy_decoder import OPS
        from vllm_standin import CUDAGraphMode, cut

        from piecewise_vllm.compiler import PiecewiseCompiler
        from piecewise_vllm.wrapper import PiecewiseGraphWrapper

        taken: list[Any] = []

        def take(graph: Any, inputs: Any) -> Any:
            taken.append((graph, list(inputs)))
            return graph.forward

        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, 0)
        torch.compile(model, backend=take, fullgraph=True)(*given)
        graph, self.inputs = taken[0]
        attention = OPS[0].replace("::", ".")
        self.whole = cut(graph, lambda node: attention in str(node.target))
        names = [name for name, _ in self.whole.named_children()]
        self.pieces = names[::2]
        compiler = PiecewiseCompiler()
        compiler.compute_hash(SimpleNamespace(model_config=SimpleNamespace(model="toy")))
        compiler.initialize_cache("", False, "backbone")
        sizes = SimpleNamespace(start=1, end=most, is_single_size=lambda: most == 1)
        self.wrappers = {}
        for index, name in enumerate(self.pieces):
            run, _ = compiler.compile(getattr(self.whole, name), [], {}, sizes, f"_{index}")
            wrapper = PiecewiseGraphWrapper(run, None, CUDAGraphMode.PIECEWISE)
            self.wrappers[name] = self.whole.__dict__[name] = wrapper

    def arguments(self, given: tuple[Any, ...]) -> list[Any]:
        """The split graph's inputs for a call with the tensors that it was traced with."""
        import torch

        size = given[0].shape[0]
        return [size if isinstance(i, (int, torch.SymInt)) else i for i in self.inputs]

    def steps(self, arguments: list[Any]) -> list[Any]:
        """The replays and operator calls of one captured forward, in order, bound."""
        import torch

        found: list[Any] = []
        wrappers = self.wrappers

        class Follow(torch.fx.Interpreter):
            def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
                if target not in wrappers:
                    return Follow(getattr(self.module, target)).run(*args)
                found.append(next(iter(wrappers[target]._served.values()))[0])
                return wrappers[target](*args)

            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                if "attention" in str(target):
                    found.append(functools.partial(target, *args, **kwargs))
                return super().call_function(target, args, kwargs)

        Follow(self.whole).run(*arguments)
        return found


def flat(steps: list[Any]) -> Any:
    """A function that makes these calls and nothing else."""
    names = {f"s{i}": step for i, step in enumerate(steps)}
    body = "\n".join(f" s{i}()" for i in range(len(steps)))
    exec(f"def floor():\n{body}", names)
    return names["floor"]


def wrapper_alone(cut: Cut, arguments: list[Any], tokens: int, calls: int) -> float:
    """Microseconds of one piece's wrapper by itself, with a replay that does nothing."""
    from vllm_standin import Engine

    name = cut.pieces[len(cut.pieces) // 2]
    wrapper, given = cut.wrappers[name], []

    def spy(*args: Any) -> Any:
        given.append(args)
        return wrapper(*args)

    cut.whole.__dict__[name] = spy
    Engine(cut.whole.forward).replay(*arguments, tokens=tokens)
    cut.whole.__dict__[name] = wrapper
    (batch, served), (args,) = next(iter(wrapper._served.items())), given

    def loop(call: Any) -> float:
        found = []
        for _ in range(7):
            begun = time.perf_counter()
            for _ in range(calls):
                call(*args)
            found.append(time.perf_counter() - begun)
        return min(found) / calls * 1e6

    wrapper._served[batch] = (lambda: None, *served[1:])
    try:
        spent: float = Engine(loop).replay(wrapper, tokens=tokens)
        return spent - loop(lambda *args: None)
    finally:
        wrapper._served[batch] = served


def measure(place: Any, layers: int, hidden: int) -> dict[str, Any]:
    """Host and wall time of a captured forward, its floor, and what lies between."""
    import torch
    from _gpu_measure import Contender, take_turns
    from toy_decoder import Decoder, inputs
    from vllm_standin import Engine

    batch = BATCH
    model = place.new(lambda: Decoder(layers, hidden))
    given = inputs(batch, hidden, place.device, place.dtype)
    with torch.no_grad():
        cut = Cut(model, given, 64)
        arguments = cut.arguments(given)
        engine = Engine(cut.whole.forward)
        stream = torch.cuda.stream(torch.cuda.Stream()) if place.device == "cuda" else None
        if stream is not None:
            torch.cuda.synchronize()
            with stream:  # vLLM captures on a stream of its own
                engine.capture(*arguments, tokens=batch)
            torch.cuda.synchronize()
        else:
            engine.capture(*arguments, tokens=batch)
        given[0].copy_(torch.randn_like(given[0]))  # not what was captured
        (served,) = engine.replay(*arguments, tokens=batch)
        expected = model(*given).float()
        error = ((served.float() - expected).abs().max() / expected.abs().max()).item()
        floor = flat(Engine(cut.steps).replay(arguments, tokens=batch))
        times = take_turns(
            [
                Contender(
                    "wrapped", lambda: engine.replay(*arguments, tokens=batch), torch.no_grad
                ),
                Contender("floor", floor, torch.no_grad),
            ],
            place,
        )
        alone = wrapper_alone(cut, arguments, batch, 20 if place.simulated else 2000)
    pieces = len(cut.pieces)
    over = (times["wrapped"].host - times["floor"].host) / pieces
    return {
        "pieces": pieces,
        "error": error,
        "microseconds": {n: {"host": t.host, "wall": t.wall} for n, t in times.items()},
        "us_per_piece_over_floor": over,
        "us_per_piece_wrapper_alone": alone,
        "target": {"us_per_piece": TARGET, "held": None if place.simulated else alone <= TARGET},
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, and print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulated", action="store_true", help="on a device without hardware")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT / "integrations" / "vllm" / "src"), str(ROOT / "tests" / "kit")]
    import torch
    import vllm_standin
    from _place import Place

    from piecewise_core.plugins import registered
    from piecewise_core.protocols import PlatformInfo, Probe

    if not options.simulated and not torch.cuda.is_available():
        print(json.dumps({"skipped": "no CUDA device"}))
        return
    place = Place(options.simulated, options.quick)
    print("stand-in for vLLM's calls: no vLLM takes part in this", flush=True)
    sys.modules.update(vllm_standin.modules(place.device))
    if place.simulated:
        os.environ.update(PIECEWISE_COMPILER="eager", PIECEWISE_CACHE_MODE="off")
    own = place.platform
    info = PlatformInfo("benchmark", place.device, (1, 1), lambda: Probe(True, ""), lambda: own)
    with registered(info):
        found = {name: measured(place, name) for name in SHAPES}
        from piecewise_vllm import report
    whole = {"stand_in": True, "simulated": place.simulated, **place.describe(), "shapes": found}
    print(json.dumps(whole | {"report": report().splitlines()}))
    sys.exit(int(any(each["error"] > ERROR for each in found.values())))


def measured(place: Any, name: str) -> dict[str, Any]:
    """One of SHAPES, which is also told."""
    layers, hidden = (3, 16) if place.simulated else SHAPES[name]
    found = measure(place, layers, hidden)
    print(f"{name}, {found['pieces']} pieces:")
    for kind, each in found["microseconds"].items():
        print(f"{kind:10} host {each['host']:8.1f} us   wall {each['wall']:8.1f} us")
    print(
        f"{found['us_per_piece_over_floor']:.2f} us a piece over the floor, of which the wrapper "
        f"alone {found['us_per_piece_wrapper_alone']:.2f} us"
    )
    return found


if __name__ == "__main__":
    main()
