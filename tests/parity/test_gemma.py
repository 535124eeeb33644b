"""Gemma 2 and 3 against transformers."""

from __future__ import annotations

import pytest

import protea
from protea.errors import DataError

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("note", "options"),
    [
        (
            "bounded scores and logits, local and global",
            {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        ),
        ("no bounds", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False}),
    ],
)
def test_gemma2(parity, note, options):
    config = transformers.Gemma2Config(
        **SIZE, num_hidden_layers=3, head_dim=16, sliding_window=5, query_pre_attn_scalar=12, **options
    )
    parity(config, id="AR-19", system="Gemma 2", note=note)


ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("five local layers to a global one, two rotary bases, scaled", {"rope_parameters": ROPES}),
        ("other pattern", {"layer_types": ["full_attention", *["sliding_attention"] * 6]}),
    ],
)
def test_gemma3(parity, note, options):
    config = transformers.Gemma3TextConfig(
        **SIZE, num_hidden_layers=7, head_dim=16, sliding_window=5, query_pre_attn_scalar=16, **options
    )
    parity(config, id="AR-19", system="Gemma 3", note=note)


def test_gemma3_bounds_no_scores(tmp_path):
    """transformers reads the bound and does not use it: a folder that has one says two things."""
    config = transformers.Gemma3TextConfig(**SIZE, num_hidden_layers=1, attn_logit_softcapping=5.0)
    transformers.Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"attn_logit_softcapping = 5\.0"):
        protea.from_pretrained(tmp_path)
