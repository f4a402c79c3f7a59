"""The compiler openvino: one piece of a model in, a callable out."""

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import CompiledGraph
from piecewise_core.protocols.lowering import Results, lower
from piecewise_openvino.exact import check, fits

MARK = b"\0piecewise results\0"
"""Between OpenVINO's code and the layouts of the piece's results, in what is kept."""


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
        check(lowered.graph)
        values = [torch.as_tensor(0) if _is_size(v) else v for v in example_inputs]
        shapes = [[d if isinstance(d, int) else -1 for d in v.shape] for v in values]
        decoder = TorchFXPythonDecoder(
            lowered.graph, input_shapes=shapes, input_types=[v.dtype for v in values]
        )
        frontend = FrontEndManager().load_by_framework("pytorch")
        try:
            model = frontend.convert(frontend.load(decoder))
        except Exception as error:
            raise PieceDeclined(f"OpenVINO cannot translate it: {error}") from error
        names = [node.name for node in lowered.graph.graph.find_nodes(op="placeholder")]
        for port in model.inputs:  # what the piece does not use is not among them
            port.set_names({str(names.index(port.any_name))})
        code = self._core.compile_model(model, "CPU")
        return self._ready(code, lowered.results)

    def load(self, handle):
        """What ``compile`` made, from its bytes."""
        code, _, results = handle.rpartition(MARK)
        return self._ready(self._core.import_model(code, "CPU"), Results.from_json(results))

    def _ready(self, code, results):
        request = code.create_infer_request()
        places = [int(port.any_name) for port in code.inputs]
        long = [
            place
            for place, port in zip(places, code.inputs, strict=True)
            if port.element_type == ov.Type.i64 and port.partial_shape.rank
        ]

        def compute(*inputs):
            for place in long:
                if not fits(inputs[place]):
                    raise OverflowError("OpenVINO's CPU device has 32 bits for whole numbers")
            arrays = [torch.as_tensor(inputs[place]).numpy() for place in places]
            found = request.infer(arrays, share_inputs=True)
            return [torch.from_numpy(found[i]) for i in range(len(found))]

        def handle():
            return code.export_model().getvalue() + MARK + results.to_json().encode()

        return CompiledGraph(results.around(compute), handle)

    def hash_factors(self):
        """OpenVINO's build; core knows the processor and this package."""
        return {"openvino": ov.get_version()}


def _is_size(value):
    return not isinstance(value, torch.Tensor)
