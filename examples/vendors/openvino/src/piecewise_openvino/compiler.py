"""The compiler openvino: one piece of a model in, a callable out."""

import tempfile
from functools import partial
from pathlib import Path

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import CompiledGraph
from piecewise_core.protocols.lowering import Results, lower, place_of
from piecewise_openvino.exact import check, refuse_wide


class OpenvinoCompiler:
    """Runs a piece as an OpenVINO model on the CPU, in float32 where the piece says so."""

    name = "openvino"

    def __init__(self):
        self._core = ov.Core()
        # Its default is bfloat16 on processors that have it.
        self._core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def compile(self, graph, example_inputs, *, key, config):
        """Translate the piece; every size that varies is a dynamic dimension."""
        lowered = lower(graph, example_inputs)
        check(lowered)
        values = [v if torch.is_tensor(v) else torch.as_tensor(0) for v in example_inputs]
        shapes = [[d if isinstance(d, int) else -1 for d in v.shape] for v in values]
        types = [v.dtype for v in values]
        decoder = TorchFXPythonDecoder(lowered.graph, input_shapes=shapes, input_types=types)
        frontend = FrontEndManager().load_by_framework("pytorch")
        try:
            model = frontend.convert(frontend.load(decoder))
        except Exception as error:
            raise PieceDeclined(f"OpenVINO cannot translate it: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            xml, weights = Path(folder, "piece.xml"), Path(folder, "piece.bin")
            ov.serialize(model, xml, weights)
            return self.load(lowered.results.pack(xml.read_bytes(), weights.read_bytes()))

    def load(self, handle):
        """What ``compile`` made, from its bytes."""
        results, xml, weights = Results.unpack(handle)
        model = self._core.read_model(xml, weights)
        run = partial(self._run, model, results)
        places = [place_of(port.any_name) for port in model.inputs if not _looked_up(port)]
        return CompiledGraph(run({}), lambda: handle, freezes=places, freeze=run)

    def _run(self, model, results, constants):
        """Code for the piece with ``constants`` built in."""
        model = model.clone()
        for port in model.inputs:
            if (place := place_of(port.any_name)) in constants:
                value = ov.op.Constant(constants[place].numpy(), shared_memory=True)
                port.replace(value.output(0))
                model.remove_parameter(port.get_node())
        request = self._core.compile_model(model, "CPU").create_infer_request()

        def compute(*arrays):
            refuse_wide(arrays)
            found = request.infer(arrays, share_inputs=True)
            return [found[i] for i in range(len(found))]

        return results.around_arrays(compute, [place_of(port.any_name) for port in model.inputs])

    def hash_factors(self):
        """OpenVINO's build; core knows the processor and this package."""
        return {"openvino": ov.get_version()}


def _looked_up(port):
    """Whether rows of the input are only looked up, which is as fast where they lie."""
    return all(use.get_node().get_type_name() == "Gather" for use in port.get_target_inputs())
