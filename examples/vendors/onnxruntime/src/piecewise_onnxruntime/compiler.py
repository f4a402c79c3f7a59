"""The compiler onnxruntime: one piece of a model in, a callable out."""

import onnx_ir
import onnxruntime as ort
import torch
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export import graph_signature as signs

from piecewise_core.building_blocks import pytree
from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import CompiledGraph
from piecewise_core.protocols.lowering import Results, lower

MARK = b"\0piecewise results\0"
"""Between the ONNX model and the layouts of the piece's results, in what is kept."""


class OnnxruntimeCompiler:
    """Runs a piece as an ONNX model on ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def compile(self, graph, example_inputs, *, key, config):
        """Translate the piece; every size that varies is a dynamic dimension."""
        lowered = lower(graph, example_inputs)
        _check(lowered.graph)
        places = [i for i, value in enumerate(example_inputs) if type(value) is not int]
        for place, node in enumerate(lowered.graph.graph.find_nodes(op="placeholder")):
            if place not in places:  # a size that does not vary, which nothing reads
                lowered.graph.graph.erase_node(node)
        try:
            program = _program(lowered.graph, tuple(example_inputs[place] for place in places))
            model = torch.onnx.export(program, dynamo=True, verbose=False).model
        except Exception as error:
            raise PieceDeclined(f"torch.onnx cannot translate it: {error}") from error
        for value, place in zip(model.graph.inputs, places, strict=True):
            value.name = f"arg_{place}"
        return self._ready(onnx_ir.to_proto(model).SerializeToString(), lowered.results)

    def load(self, handle):
        """What ``compile`` made, from its bytes."""
        model, _, results = handle.rpartition(MARK)
        return self._ready(model, Results.from_json(results))

    def _ready(self, model, results):
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        places = [int(name.rpartition("_")[2]) for name in names]

        def compute(*inputs):
            arrays = [torch.as_tensor(inputs[place]).numpy() for place in places]
            found = session.run(None, dict(zip(names, arrays, strict=True)))
            return [torch.from_numpy(array) for array in found]

        return CompiledGraph(
            results.around(compute), lambda: model + MARK + results.to_json().encode()
        )

    def hash_factors(self):
        """The runtime's build; core knows torch, which exports, and this package."""
        return {"onnxruntime": f"{ort.__version__} {ort.get_build_info()}"}


def _check(graph):
    """Decline what NumPy cannot hand over, and what draws from another generator than torch's."""
    for node in graph.graph.nodes:
        values = pytree.tree_leaves(node.meta.get("val"))
        if torch.bfloat16 in {getattr(value, "dtype", None) for value in values}:
            raise PieceDeclined(f"{node} is of bfloat16, which NumPy does not have")
        draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if draws and ("attention" not in str(node.target) or any(node.args[3:4])):
            raise PieceDeclined(f"{node} draws from another generator than torch's")


def _program(graph, examples):
    """The graph as torch.export has it, over the sizes that core gave; it is not traced again."""
    inputs = graph.graph.find_nodes(op="placeholder")
    results = graph.graph.output_node().args[0]
    signature = signs.ExportGraphSignature(
        [signs.InputSpec(signs.InputKind.USER_INPUT, _argument(n), None) for n in inputs],
        [signs.OutputSpec(signs.OutputKind.USER_OUTPUT, _argument(n), None) for n in results],
    )
    given = (examples, {})
    trees = [pytree.tree_flatten(tree)[1] for tree in (given, [0] * len(results))]
    calls = [ModuleCallEntry("", ModuleCallSignature([], [], *trees))]
    return ExportedProgram(graph, graph.graph, signature, {}, {}, calls, example_inputs=given)


def _argument(node):
    tensor = torch.is_tensor(node.meta["val"])
    return (signs.TensorArgument if tensor else signs.SymIntArgument)(node.name)
