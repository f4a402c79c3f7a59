"""MiniLM by one of the example compilers or platforms: every way to its code, against eager.

``check.py`` starts it, in an environment where the example is installed. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))

import minilm_contenders  # noqa: E402 -- the demo's, which lies beside this directory
import torch  # noqa: E402
from demo_text import batches  # noqa: E402

import piecewise_core as pw  # noqa: E402

NAMES = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-4
Run = Callable[..., torch.Tensor]


class Served:
    """The model, some batches of text, and what eager makes of them on the CPU."""

    def __init__(self, count: int, settings: dict[str, Any], device: str = "cpu") -> None:
        self.device = device
        self.model, tokenizer = minilm_contenders.load()
        texts = sorted(batches(), key=lambda batch: sum(map(len, batch)))
        tokens = [tokenizer(batch, padding=True, return_tensors="pt") for batch in texts]
        self.all_inputs = [{name: one[name] for name in NAMES} for one in tokens]
        self.inputs = self.all_inputs[:count]
        self.expected = [self.model(**one).last_hidden_state for one in self.inputs]
        batch, sequence = (
            pw.Dim(name, *bounds)
            for name, bounds in zip(("batch", "sequence"), minilm_contenders.BOUNDS, strict=True)
        )
        self.config = {
            "dynamic": {name: {0: batch, 1: sequence} for name in NAMES},
            "compile_ranges_endpoints": {"sequence": (16,)},
            **settings,
        }

    def compiled(self, folder: Path, **settings: Any) -> Any:
        """The model, not called yet, with its store in ``folder``."""
        config = pw.Config(**self.config, cache_dir=str(folder), **settings)
        return pw.compile(self.fresh(), config)

    def fresh(self) -> torch.nn.Module:
        """Another model of the same weights, on the device."""
        model: torch.nn.Module = minilm_contenders.load()[0].to(self.device)
        return model

    def moved(self, run: Run) -> Run:
        """``run`` with inputs taken to the device, and its result back."""

        def there(**inputs: torch.Tensor) -> torch.Tensor:
            return run(**{name: value.to(self.device) for name, value in inputs.items()}).cpu()

        return run if self.device == "cpu" else there

    def off(self, run: Run) -> float:
        """Largest difference to eager over real tokens."""
        run = self.moved(run)
        return max(
            float((run(**one) - right).abs()[one["attention_mask"].bool()].max())
            for one, right in zip(self.inputs, self.expected, strict=True)
        )

    def off_when_compiled(self, model: Any, patience: float = 600) -> float:
        """The same for every pass, until all of one ran on what was compiled behind it."""
        largest, late = 0.0, time.perf_counter() + patience
        while time.perf_counter() < late:
            before = model.stats().calls["compiled_range"]
            largest = max(largest, self.off(hidden(model)))
            if model.stats().calls["compiled_range"] == before + len(self.inputs):
                return largest
            time.sleep(0.5)
        raise TimeoutError(f"not compiled in the background after {patience} s: {model.stats()}")

    def ratios(self, ours: Run, own: Run, rounds: int) -> dict[str, float]:
        """The time of ``ours`` to that of ``own``, in pairs of calls with one batch.

        Medians per batch, summed: of all batches of the demo, and of those that are checked. By
        the clock, and in seconds of processors, which other load on the machine changes less.
        """
        pairs: dict[Run, list[tuple[float, float]]] = {ours: [], own: []}
        for one in self.all_inputs:
            taken: dict[Run, list[tuple[float, float]]] = {ours: [], own: []}
            for number in range(rounds + 1):
                for run in (ours, own) if number % 2 else (own, ours):
                    taken[run].append(_seconds(run, one))
            for run, found in taken.items():  # the first round is the warm-up
                wall, processors = zip(*found[1:], strict=True)
                pairs[run].append((statistics.median(wall), statistics.median(processors)))
        return {
            f"{which}, {by}": round(
                sum(one[place] for one in pairs[ours][:count])
                / sum(one[place] for one in pairs[own][:count]),
                3,
            )
            for which, count in (("all batches", None), ("checked batches", len(self.inputs)))
            for place, by in enumerate(("clock", "processors"))
        }


def _seconds(run: Run, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Of one call: by the clock, and of all threads together."""
    begun = time.perf_counter(), time.process_time()
    run(**inputs)
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def hidden(model: Any) -> Run:
    """The model as a function that gives hidden states."""
    return lambda **inputs: model(**inputs).last_hidden_state


def openvino_s_own(
    model: torch.nn.Module, example: dict[str, torch.Tensor], threads: int = 0
) -> Run:
    """The model as OpenVINO itself compiles it, weights folded in, in float32.

    ``threads``: 0 leaves their number to it.
    """
    import openvino as ov

    with torch.inference_mode(False), torch.no_grad():
        graph = ov.convert_model(model, example_input={k: v.clone() for k, v in example.items()})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    code = ov.Core().compile_model(graph, "CPU", settings)
    request = code.create_infer_request()

    def run(**inputs: torch.Tensor) -> torch.Tensor:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])

    return run


def onnxruntime_s_own(
    model: torch.nn.Module, example: dict[str, torch.Tensor], threads: int = 0
) -> Run:
    """The model as torch exports it and ONNX Runtime optimises it, weights folded in.

    ``threads``: 0 leaves their number to it.
    """
    import onnxruntime as ort

    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            model,
            kwargs={k: v.clone() for k, v in example.items()},
            dynamic_shapes=dict.fromkeys(NAMES, dims),
            dynamo=True,
            verbose=False,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(program.model_proto.SerializeToString(), options)

    def run(**inputs: torch.Tensor) -> torch.Tensor:
        arrays = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


OWN = {"openvino": openvino_s_own, "onnxruntime": onnxruntime_s_own}
KEEPING = {*OWN, "tally"}
"""Whose code the store and bundles keep, and a worker makes."""


def serve(name: str, served: Served, rounds: int) -> dict[str, Any]:
    """Ranges, store, bundle and background; then the vendor's own, in turn with ours."""
    found: dict[str, Any] = {"off": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = served.compiled(folder / "store")
        found["off"]["ranges"] = served.off(hidden(first))
        stats = first.stats()
        found["compilations"], found["declined"] = stats.compilations, stats.declined
        if name not in KEEPING:
            return {**found, "compiled_again": 0}
        again = served.compiled(folder / "store")
        found["off"]["store"] = served.off(hidden(again))
        found["compiled_again"] = again.stats().compilations
        first.save(folder / "model.pwb")
        loaded = pw.load(folder / "model.pwb", served.fresh())
        loaded.seal()
        found["off"]["bundle"] = served.off(hidden(loaded))
        behind = served.compiled(folder / "empty", compile_mode="background")
        found["off"]["background"] = served.off_when_compiled(behind)
        if name in OWN:
            own = OWN[name](served.model, served.inputs[-1])
            found["off"]["own"] = served.off(own)
            found["ratio_to_own"] = served.ratios(hidden(first), own, rounds)
    return found


def main() -> None:
    """Serve MiniLM as asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = {"compiler": options.name} if options.name in OWN else {}
    device = "vulkan" if options.name == "vulkan" else "cpu"
    if device == "vulkan":
        import torchvulkan  # noqa: F401 -- brings the device
    with torch.inference_mode():
        found = serve(options.name, Served(options.batches, settings, device), options.rounds)
    wrong = {way: off for way, off in found["off"].items() if not off <= TOLERANCE}
    if wrong or found["compiled_again"] or found["declined"]:
        sys.exit(f"{options.name}: not as eager, compiled twice, or declined: {found}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
