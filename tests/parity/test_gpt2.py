"""GPT-1, GPT-2 and GPT-3 against transformers."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("tied, biases everywhere", {}),
        ("untied, narrower perceptron", {"tie_word_embeddings": False, "n_inner": 48}),
        ("scores over i + 1", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
        ("exact GELU", {"activation_function": "gelu"}),
        ("ReLU", {"activation_function": "relu"}),
        ("SiLU", {"activation_function": "silu"}),
    ],
)
def test_gpt2(parity, note, options):
    config = transformers.GPT2Config(**SIZE, bos_token_id=60, eos_token_id=60, **options)
    ours = parity(config, id="AR-07", system="GPT-2", note=note)
    assert ours.begin == 60 and ours.context == 32


def test_gpt1(parity):
    config = transformers.OpenAIGPTConfig(**SIZE)
    parity(config, id="AR-07", system="GPT-1", note="norms after branches")
