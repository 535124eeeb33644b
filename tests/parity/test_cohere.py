"""Cohere 2 against transformers' Cohere2ForCausalLM."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("parallel branches, three sliding layers to one without positions", {"num_hidden_layers": 5}),
        ("biases of attention", {"num_hidden_layers": 2, "attention_bias": True}),
        ("untied, other pattern", {"num_hidden_layers": 2, "tie_word_embeddings": False, "logit_scale": 1.0,
                                   "layer_types": ["full_attention", "sliding_attention"]}),
    ],
)  # fmt: skip
def test_cohere2(parity, note, options):
    config = transformers.Cohere2Config(**SIZE, sliding_window=5, bos_token_id=5, eos_token_id=6, **options)
    parity(config, id="AR-27", system="Cohere 2", note=note)
