"""Libraries with models of their own, tiny and random; a test skips where its library is absent."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def door(model):
    return torch.compile(model, backend="piecewise", options={"compiler": "eager"}, dynamic=True)


def test_a_graph_network_of_torch_geometric_is_served_both_ways():
    nn = pytest.importorskip("torch_geometric.nn")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GCNConv(8, 16), nn.GCNConv(16, 4)

        def forward(self, x, edges):
            return self.second(self.first(x, edges).relu(), edges)

    model = Network().eval()
    dims = {"x": {0: pw.Dim("nodes", max=100)}, "edges": {1: pw.Dim("edges", max=400)}}
    fast, through = pw.compile(model, pw.Config(dynamic=dims, compiler="eager")), door(model)
    for nodes, edges in ((10, 30), (7, 50), (20, 4)):
        x, pairs = torch.randn(nodes, 8), torch.randint(0, nodes, (2, edges))
        wanted = model(x, pairs)
        torch.testing.assert_close(fast(x, pairs), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(through(x, pairs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"cached": True}, {"add_self_loops": False}], ids=str)
def test_a_graph_convolution_is_captured_and_its_sparse_form_refused_by_name(options):
    nn = pytest.importorskip("torch_geometric.nn")
    model = nn.GCNConv(8, 4, **options).eval()
    dims = {"x": {0: pw.Dim("nodes", max=100)}, "edge_index": {1: pw.Dim("edges", max=400)}}
    sizes = {"capture_sizes": [(10, 30)], "capture_max": False}
    config = pw.Config(dynamic=dims, compiler="eager", **sizes)
    fast = pw.compile(model, config, platform=SimulatedPlatform())
    edges = torch.randint(0, 10, (2, 30))  # a cached one keeps what it made of the first
    for _ in range(3):
        x = torch.randn(10, 8)
        torch.testing.assert_close(fast(x, edges), model(x, edges), rtol=1e-4, atol=1e-5)
    assert fast.stats().calls["replayed"] >= 2
    sparse = torch.eye(10).to_sparse()
    with pytest.raises(pw.errors.InputMismatch, match=r'"edge_index" is a torch\.sparse_coo'):
        fast(torch.randn(10, 8), sparse)


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_weights_that_torchao_quantised_are_served_through_the_door(kind):
    ao = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    ao.quantize_(model.eval(), getattr(ao, kind)())
    through = door(model)
    for rows in (3, 1, 8):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(through(x), model(x))


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
@pytest.mark.parametrize("serve", [pw.compile, pw.record])
@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_weights_that_torchao_quantised_are_served_and_captured(kind, serve):
    ao = pytest.importorskip("torchao.quantization")
    layers = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)]
    model = torch.nn.Sequential(*layers).eval()
    sizes = {"capture_sizes": [3], "capture_max": False}
    config = pw.Config(dynamic={"input": {0: pw.Dim("rows", max=16)}}, compiler="eager", **sizes)
    fast = serve(model, config, platform=SimulatedPlatform())

    def check():
        for rows in (3, 3, 1, 3, 8):
            x = torch.randn(rows, 64)
            torch.testing.assert_close(fast(x), model(x))

    check()  # as it was
    ao.quantize_(model, getattr(ao, kind)())
    check()
    fast.restore()
    check()
    model[0].weight.scale.mul_(2)
    check()
    model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)
    check()
    assert fast.stats().calls["replayed"] > 2


@pytest.mark.filterwarnings("ignore")  # its own
def test_a_sentence_transformer_compiled_by_its_own_method_encodes_texts_of_any_length(tmp_path):
    library, transformers = (
        pytest.importorskip(name) for name in ("sentence_transformers", "transformers")
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
    config = transformers.BertConfig(**sizes, num_attention_heads=4, vocab_size=len(words))
    transformers.BertModel(config).save_pretrained(tmp_path)
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    texts = ["the cat sat", "cat", "the cat sat on the mat the cat sat on the mat", ""]
    batches = (texts, texts[:1], texts[2:3], texts[:2])
    wanted = [model.encode(batch, convert_to_tensor=True) for batch in batches]
    before = pw.counters.graphs
    model.compile(backend="piecewise", options={"compiler": "eager"})
    for batch, expected in zip(batches, wanted, strict=True):
        got = model.encode(batch, convert_to_tensor=True)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert pw.counters.graphs > before


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_generate_with_an_adapter_of_peft_is_served_by_the_model_inside(caplog):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, vocab_size=100)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora).eval()
    fast = pw.compile(adapted.base_model.model, pw.Config(compiler="eager"))
    ids = torch.randint(5, 90, (1, 7))
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    got = fast.generate(ids, cache_implementation="static", **settings)
    assert got.tolist() == adapted.generate(input_ids=ids, **settings).tolist()
    assert fast.stats().calls["compiled_range"] == 4
    around = pw.compile(adapted, pw.Config(compiler="eager"))
    with caplog.at_level("WARNING", "piecewise_core"):
        assert around.generate(input_ids=ids, **settings).tolist() == got.tolist()
    assert "pw.compile(model.base_model.model, config), and call its generate()" in caplog.text


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_repeated_blocks_of_a_diffusers_transformer_are_served_through_the_door():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    ).eval()

    def call(side):
        made = torch.Generator().manual_seed(side)
        latent = torch.randn(1, 4, side, side, generator=made)
        text, pooled = torch.randn(1, 6, 32, generator=made), torch.randn(1, 64, generator=made)
        given = {"encoder_hidden_states": text, "pooled_projections": pooled}
        return model(latent, timestep=torch.tensor([3]), **given).sample

    wanted = [call(side) for side in (8, 12)]
    before = pw.counters.graphs
    model._repeated_blocks = ["JointTransformerBlock"]  # which this class does not name
    model.compile_repeated_blocks(backend="piecewise", options={"compiler": "eager"}, dynamic=True)
    for side, expected in zip((8, 12), wanted, strict=True):
        torch.testing.assert_close(call(side), expected, rtol=1e-4, atol=1e-5)
    assert pw.counters.graphs > before
