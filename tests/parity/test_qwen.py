"""Qwen 2 and 3 against transformers."""

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
        ("biases of q, k, v", {"tie_word_embeddings": True}),
        ("upper layers slide", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("YaRN", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                                      "original_max_position_embeddings": 16}}),
    ],
)  # fmt: skip
def test_qwen2(parity, note, options):
    config = transformers.Qwen2Config(**SIZE, num_hidden_layers=3, **options)
    parity(config, id="AR-12", system="Qwen 2", note=note)


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("normed queries and keys, wide heads", {"head_dim": 16}),
        ("biases of attention", {"head_dim": 8, "attention_bias": True}),
        (
            "upper layers slide",
            {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        ),
    ],
)
def test_qwen3(parity, note, options):
    config = transformers.Qwen3Config(**SIZE, num_hidden_layers=2, **options)
    parity(config, id="AR-12", system="Qwen 3", note=note)
