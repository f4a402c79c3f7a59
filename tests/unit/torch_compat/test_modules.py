"""Graph modules whose Python is generated when it is asked for."""

import torch

from piecewise_core.torch_compat.modules import forward_of, graph_module


def test_what_runs_a_graph_is_its_own_code_and_no_stand_in():
    graph = torch.fx.Graph()
    graph.output(graph.call_method("relu", (graph.placeholder("x"),)))
    module = graph_module({}, graph)
    run = forward_of(module)
    assert run.__code__.co_name == "forward"
    assert run(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert module.code  # of a graph that nobody ran, too
