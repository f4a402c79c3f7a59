"""A compiler without a device: its adaptor brings a graph pass that only runs with it."""

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import CompiledGraph


def sums_for_doubles(graph):
    """Replace 2 * x by x + x, and note that it was done."""
    import operator

    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is operator.mul and node.args[1] == 2:
            with graph.graph.inserting_before(node):
                double = graph.graph.call_function(operator.add, (node.args[0], node.args[0]))
            double.meta = dict(node.meta)
            node.replace_all_uses_with(double)
            graph.graph.erase_node(node)
    graph.recompile()


class Doubling:
    name = "doubling"

    def __init__(self):
        self.seen = []

    def compile(self, graph, example_inputs, *, key, config):
        self.seen.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return CompiledGraph(graph.forward)

    def hash_factors(self):
        return {"doubling": "1.4"}

    def passes(self):
        return [sums_for_doubles]


@hookimpl
def piecewise_compilers():
    return {"doubling": Doubling}
