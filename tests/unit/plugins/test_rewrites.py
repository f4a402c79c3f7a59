"""Plugins' passes and rewrites: at each level, in order, by name, for the right platforms."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import ConfigError, PluginError
from piecewise_core.plugins import all_passes
from piecewise_core.testing import SimulatedPlatform

PASSES = """
from piecewise_core.hookspecs import hookimpl

def tidy(graph):
    graph.append("tidy")

class Fuse:
    def __call__(self, graph):
        raise ValueError("no pattern")

@hookimpl
def piecewise_passes():
    return [tidy, Fuse()]
"""


def test_passes_come_by_distribution_and_say_where_they_are_from(site):
    site.install("zeta", "1.0", entry="a", source=PASSES)
    site.install("acme", "3.2", entry="z", source=PASSES)

    passes = all_passes()
    assert [p.key for p in passes] == [
        "acme==3.2:acme_plugin.tidy",
        "acme==3.2:acme_plugin.Fuse",
        "zeta==1.0:zeta_plugin.tidy",
        "zeta==1.0:zeta_plugin.Fuse",
    ]
    graph: list[str] = []
    passes[0](graph)
    assert graph == ["tidy"]


def test_a_pass_that_raises_is_named(site):
    site.install("acme", "3.2", entry="acme", source=PASSES)
    with pytest.raises(PluginError, match=r"acme 3\.2: .*Fuse.*piecewise_passes.*no pattern"):
        all_passes()[1]([])


@pytest.mark.parametrize("broken", ["return 7", "return [7]", "raise OSError('gone')"])
def test_a_plugin_whose_passes_cannot_be_had_is_logged_and_left_out(site, caplog, broken):
    site.install(
        "acme", "3.2", entry="acme", source=PASSES.replace("return [tidy, Fuse()]", broken)
    )
    site.install("zeta", entry="zeta", source=PASSES)

    assert [p.origin.distribution for p in all_passes()] == ["zeta", "zeta"]
    assert "acme 3.2: its hook piecewise_passes failed" in caplog.text


def test_a_plugin_without_passes_adds_none(site):
    site.platform("acme", "acme")
    assert all_passes() == ()


# Rewrites -----------------------------------------------------------------------------

REWRITES = """
import torch
from piecewise_core.building_blocks import GraphRewrite
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe

seen = []

def program(graph, is_splitting):
    cuts = [n for n in graph.graph.nodes if is_splitting(n)]
    seen.append(("program", len(cuts)))
    for node in graph.graph.find_nodes(op="call_function", target=torch.relu):
        node.target = torch.nn.functional.relu

def piece(graph, is_splitting):
    seen.append(("piece", [n.op for n in graph.graph.nodes if is_splitting(n)]))

def lowered(graph, is_splitting):
    targets = {n.target for n in graph.graph.nodes if n.op == "call_function"}
    seen.append(("lowered", all(isinstance(t, torch._ops.OpOverload) for t in targets)))

@hookimpl
def piecewise_rewrites(platform, config):
    seen.append((platform.name, config.compiler))
    yield GraphRewrite("acme_lowered", "piece", "1", lowered, lowered=True)
    yield GraphRewrite("acme_piece", "piece", "1", piece)
    yield GraphRewrite("acme_program", "program", "1", program)
"""

ANNOUNCES = """
@hookimpl
def piecewise_platforms():
    yield PlatformInfo("{}", "cpu", (1, 1), lambda: Probe(True, "x"), lambda: None)
"""

CONFIG = pw.Config(
    dynamic={"x": {0: pw.Dim("rows", min=1, max=8)}},
    splitting_ops=("torch.nn.functional.layer_norm",),
    capture_sizes=(4, 8),
)


def layers(x):
    x = torch.nn.functional.layer_norm(torch.relu(x) + 1, (4,))
    return x * 2


class Compiler(EagerCompiler):
    """As eager, but one that compiles: what it is given is lowered where a rewrite asks for it."""

    name = "acmec"


def simulated():
    platform = SimulatedPlatform()
    platform.compiler = Compiler()
    return platform


def served(config=CONFIG):
    """The model compiled and called, with the numbers of eager."""
    fast = pw.compile(layers, config, platform=simulated())
    with torch.inference_mode():
        for rows in (8, 3, 1):
            x = torch.randn(rows, 4)
            assert torch.equal(fast(x), layers(x))
    return fast


def told(site, config=CONFIG, source=REWRITES):
    """What the plugin's rewrites were given, in order."""
    import importlib

    site.install("piecewise-acme", "3.2", entry="acme", source=source)
    fast = served(config)
    return fast, importlib.import_module("piecewise_acme_plugin").seen


def test_a_vendor_s_rewrites_run_at_their_levels_with_what_they_want(site):
    _, seen = told(site, source=REWRITES + ANNOUNCES.format("simulated"))
    assert seen[0] == ("simulated", "acmec")
    assert ("program", 1) in seen
    assert {what for what in seen if what[0] == "lowered"} == {("lowered", True)}
    kinds = [kind for kind, _ in seen]
    assert kinds.index("program") < kinds.index("piece") < kinds.index("lowered")
    assert kinds.count("piece") == kinds.count("lowered") >= 2


def test_any_object_with_the_protocol_s_members_is_a_rewrite(site):
    source = REWRITES.replace(
        "@hookimpl",
        """class Own:
    name, level, key = "own", "piece", "7"

    def apply(self, graph, is_splitting):
        piece(graph, is_splitting)

@hookimpl""",
    ).replace('GraphRewrite("acme_piece", "piece", "1", piece)', "Own()")
    fast, seen = told(site, source=source)
    assert "piece" in {kind for kind, _ in seen}
    assert fast.explain().to_json().count('"own"') == 1


def test_explain_lists_rewrites_in_the_order_in_which_they_run(site):
    fast, _ = told(site, CONFIG.replace(rewrites_off=("acme_piece", "mask_terms")))
    listed = [(r.name, r.level, r.by, r.off) for r in fast.explain(verbose=True).rewrites]
    acme = "piecewise-acme 3.2"
    assert listed == [
        ("shared_heads", "program", "piecewise-core", ""),
        ("mask_terms", "program", "piecewise-core", "rewrites_off"),
        ("acme_program", "program", acme, ""),
        ("acme_piece", "piece", acme, "rewrites_off"),
        ("acme_lowered", "piece", acme, ""),
    ]
    assert (
        "rewrites shared_heads, mask_terms (off: rewrites_off), acme_program of piecewise-acme 3.2"
        in str(fast.explain(verbose=True))
    )


@pytest.mark.parametrize("level", ["program", "piece", "lowered"])
def test_a_rewrite_is_switched_off_by_name(site, level):
    _, seen = told(site, CONFIG.replace(rewrites_off=(f"acme_{level}",)))
    assert {kind for kind, _ in seen[1:]} == {"program", "piece", "lowered"} - {level}


def test_rewrites_and_passes_do_not_run_for_platforms_that_the_plugin_does_not_announce(site):
    source = REWRITES + ANNOUNCES.format("other")
    source += "\n@hookimpl\ndef piecewise_passes():\n    return [lambda g: seen.append((g,))]"
    fast, seen = told(site, source=source)
    assert seen == []
    assert [r.name for r in fast.explain().rewrites] == ["shared_heads", "mask_terms"]


def test_where_pieces_run_as_written_nothing_is_lowered(site):
    fast, seen = told(site, CONFIG.replace(compiler="eager"))
    assert {kind for kind, _ in seen[1:]} == {"program", "piece"}
    assert fast.explain().rewrites[-1].off == "nothing is lowered for compiler eager"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mask_term", "did you mean 'mask_terms'"),
        ("acme", "acme_piece, acme_program"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(site, name, complaint):
    with pytest.raises(ConfigError, match=rf"rewrites_off: '{name}' is no rewrite.*{complaint}"):
        told(site, CONFIG.replace(rewrites_off=(name,)))


def test_a_pass_is_switched_off_by_its_name_too(site):
    site.install("acme", "3.2", entry="acme", source=PASSES.replace("tidy, Fuse()", "Fuse()"))
    with pytest.raises(
        PluginError, match=r"acme 3\.2: .*Fuse.*rewrites_off=\('acme_plugin.Fuse',\)"
    ):
        served()
    served(CONFIG.replace(rewrites_off=("acme_plugin.Fuse",)))


@pytest.mark.parametrize("level", ["program", "piece", "lowered"])
def test_a_rewrite_that_raises_names_itself_and_its_plugin(site, level):
    source = REWRITES.replace(
        f"def {level}(graph, is_splitting):", f"def {level}(graph, is_splitting):\n    1 / 0"
    )
    wanted = rf"piecewise-acme 3\.2: its rewrite 'acme_{level}' .*ZeroDivisionError.*rewrites_off"
    with pytest.raises(PluginError, match=wanted):
        told(site, source=source)


def test_new_nodes_without_what_they_give_are_named(site):
    source = REWRITES.replace(
        'seen.append(("program", len(cuts)))',
        "node = graph.graph.find_nodes(op='call_function', target=torch.relu)[0]\n"
        "    with graph.graph.inserting_after(node):\n"
        "        graph.graph.call_function(torch.sin, (node,))",
    )
    with pytest.raises(PluginError, match=r"its rewrite 'acme_program' made .*example_value"):
        told(site, source=source)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"program", "1"', '"graph", "1"', "Rewrite.level is 'graph'"),
        (
            '"acme_piece", "piece", "1"',
            '"acme_piece", "piece", 1',
            "Rewrite.key is 1, not",
        ),
        ('yield GraphRewrite("acme_piece", "piece", "1", piece)', "yield piece", "is missing"),
        ("seen.append((platform.name", "0 / 0, ((platform.name", "hook piecewise_rewrites failed"),
    ],
)
def test_malformed_rewrites_are_logged_and_left_out(site, caplog, old, new, complaint):
    source = REWRITES.replace(old, new)
    assert source != REWRITES
    fast, _ = told(site, source=source)
    assert complaint in caplog.text
    assert "piecewise-acme 3.2" in caplog.text
    assert [r.name for r in fast.explain().rewrites] == ["shared_heads", "mask_terms"]


def test_a_name_that_core_has_is_left_out_with_a_warning(site, caplog):
    fast, _ = told(site, source=REWRITES.replace('"acme_piece"', '"mask_terms"'))
    assert "skipping rewrite 'mask_terms' of piecewise-acme 3.2: piecewise-core has" in caplog.text
    assert len(fast.explain().rewrites) == 4


def test_what_is_kept_is_not_found_where_a_rewrite_differs(site):
    def keys(**changes):
        fast = served(CONFIG.replace(**changes))
        return fast._pw_session.setup.artifact_cache()._environment.fixed()["rewrites"]

    before = keys()
    site.install("piecewise-acme", "3.2", entry="acme", source=REWRITES)
    with_acme = keys()
    others = [keys(rewrites_off=(n,)) for n in ("acme_program", "acme_piece", "shared_heads")]
    assert len({before, with_acme, *others}) == 5
    assert "piecewise-acme 3.2 program acme_program 1" in with_acme
