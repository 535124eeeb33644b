"""Jamba against transformers' JambaForCausalLM."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mamba_d_state": 4,
    "pad_token_id": None,
}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        (
            "dense, one attention layer in four",
            {"num_key_value_heads": 2, "num_experts": 1, "attn_layer_period": 4, "attn_layer_offset": 2},
        ),
        (
            "four experts in every second layer, attention in every second",
            {
                "num_key_value_heads": 4,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "attn_layer_period": 2,
                "attn_layer_offset": 0,
            },
        ),
        (
            "experts everywhere, top 1, tied, other widths",
            {
                "num_key_value_heads": 1,
                "num_experts": 3,
                "num_experts_per_tok": 1,
                "expert_layer_period": 1,
                "expert_layer_offset": 0,
                "attn_layer_period": 3,
                "attn_layer_offset": 1,
                "tie_word_embeddings": True,
                "mamba_d_conv": 3,
                "mamba_expand": 1,
                "mamba_dt_rank": 3,
            },
        ),
    ],
)
def test_jamba(parity, note, options):
    ours = parity(transformers.JambaConfig(**SIZE, **options), id="AR-23", system="Jamba", note=note)
    assert ours.architecture == "jamba"
