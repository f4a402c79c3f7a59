"""``transformers.pipeline`` around compiled models, tiny and random: the same answers and files."""

from __future__ import annotations

import json

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # its own

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
TEXTS = ["the cat sat", "cat", "the cat sat on the mat the cat"]
TASKS = {
    "text-classification": "BertForSequenceClassification",
    "feature-extraction": "BertModel",
    "fill-mask": "BertForMaskedLM",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("\n".join(WORDS))
    return transformers.BertTokenizer(str(file), padding_side="left")


def encoder(task, dtype):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, vocab_size=len(WORDS))
    return getattr(transformers, TASKS[task])(config).eval().to(dtype)


def compiled(model):
    named = {0: pw.Dim("batch", max=8), 1: pw.Dim("length", max=32)}
    dims = dict.fromkeys(("input_ids", "token_type_ids", "attention_mask"), named)
    config = pw.Config(
        dynamic=dims, compiler="eager", capture_sizes=[(1, 5), (3, 10), (3, 11)], capture_max=False
    )
    return pw.compile(model, config, SimulatedPlatform())


def pipe(task, model, tokenizer):
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def same(got, wanted):
    """The same answers, but for rounding."""
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        got, wanted = list(got.values()), list(wanted.values())
    if isinstance(wanted, list):
        for mine, theirs in zip(got, wanted, strict=True):
            same(mine, theirs)
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    else:
        assert got == wanted


@pytest.mark.parametrize(
    ("task", "dtype"), [*zip(TASKS, (torch.float32, torch.bfloat16, torch.float32), strict=True)]
)
def test_a_pipeline_of_a_compiled_model_answers_as_that_of_the_model(
    task, dtype, tokenizer, tmp_path
):
    model = encoder(task, dtype)
    fast = compiled(encoder(task, dtype))
    texts = [f"{text} [MASK]" for text in TEXTS] if task == "fill-mask" else TEXTS
    for batch in (1, 3):
        wanted = pipe(task, model, tokenizer)(texts, batch_size=batch)
        got = pipe(task, fast, tokenizer)(texts, batch_size=batch)
        same(got, wanted)
    calls = fast.stats().calls
    assert calls["eager"] == 0
    assert calls["replayed"] > 0
    fast.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [TASKS[task]]
    again = type(model).from_pretrained(tmp_path)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_pipeline_that_generates_gives_the_models_own_text(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.LlamaConfig(**sizes, **heads, vocab_size=len(WORDS), **ids)
    model = transformers.LlamaForCausalLM(config).eval()
    fast = pw.compile(model, pw.Config(compiler="eager"))
    settings = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}
    for batch in (1, 2):
        wanted = pipe("text-generation", model, tokenizer)(TEXTS, batch_size=batch, **settings)
        got = pipe("text-generation", fast, tokenizer)(TEXTS, batch_size=batch, **settings)
        assert got == wanted
    assert fast.stats().calls["compiled_range"] > 0
