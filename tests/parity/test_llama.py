"""Llama 2 and 3 against transformers' LlamaForCausalLM."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("Llama 2: every head its key, untied", {"num_key_value_heads": 6}),
        ("grouped heads, tied", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("Llama 3: one key head, scaled rotary base", {"num_key_value_heads": 1, "rope_parameters": LLAMA3}),
        ("biases of attention", {"num_key_value_heads": 2, "attention_bias": True}),
        ("heads wider than the stream", {"num_key_value_heads": 2, "head_dim": 16}),
    ],
)
def test_llama(parity, note, options):
    config = transformers.LlamaConfig(**SIZE, max_position_embeddings=64, rms_norm_eps=1e-5, **options)
    ours = parity(config, id="AR-20", system="Llama", note=note)
    assert ours.context == 64 and ours.architecture == "llama"
