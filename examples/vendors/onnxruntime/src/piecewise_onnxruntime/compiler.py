"""The compiler onnxruntime: one piece of a model in, a callable out."""

from functools import partial

import onnx
import onnx_ir
import onnxruntime as ort
import torch

from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import CompiledGraph
from piecewise_core.protocols.lowering import Results, lower, place_of

TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
"""Those that NumPy has too."""


class OnnxruntimeCompiler:
    """Runs a piece as an ONNX model on ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def compile(self, graph, example_inputs, *, key, config):
        """Translate the piece; every size that varies is a dynamic dimension."""
        lowered = lower(graph, example_inputs)
        lowered.decline(other_than=TYPES)
        program = lowered.exported()
        names = program.graph_signature.user_inputs
        try:
            model = torch.onnx.export(program, dynamo=True, verbose=False).model
        except Exception as error:
            raise PieceDeclined(f"torch.onnx cannot translate it: {error}") from error
        for value, name in zip(model.graph.inputs, names, strict=True):
            value.name = name  # torch.onnx numbers them anew
        return self.load(lowered.results.pack(onnx_ir.to_proto(model).SerializeToString()))

    def load(self, handle):
        """What ``compile`` made, from its bytes."""
        results, model = Results.unpack(handle)
        run = partial(self._run, onnx.load_from_string(model), results)
        places = [place_of(one.name) for one in onnx.load_from_string(model).graph.input]
        return CompiledGraph(run({}), lambda: handle, freezes=places, freeze=run)

    def _run(self, model, results, constants):
        """Code for the piece with ``constants`` built in."""
        whole = onnx.ModelProto.FromString(model.SerializeToString())
        for one in [one for one in whole.graph.input if place_of(one.name) in constants]:
            array = constants[place_of(one.name)].numpy()
            whole.graph.initializer.append(onnx.numpy_helper.from_array(array, one.name))
            whole.graph.input.remove(one)
        session = ort.InferenceSession(
            whole.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [one.name for one in session.get_inputs()]

        def compute(*arrays):
            return session.run(None, dict(zip(names, arrays, strict=True)))

        return results.around_arrays(compute, [place_of(name) for name in names])

    def hash_factors(self):
        """The runtime's build; core knows torch, which exports, and this package."""
        return {"onnxruntime": f"{ort.__version__} {ort.get_build_info()}"}
