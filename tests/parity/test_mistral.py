"""Mistral against transformers' MistralForCausalLM: windows to the token."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("window", [None, 1, 4, 5, 19, 20])
def test_mistral(parity, window):
    config = transformers.MistralConfig(**SIZE, num_hidden_layers=2, sliding_window=window, rms_norm_eps=1e-5)
    ours = parity(config, id="AR-19", system="Mistral", note=f"window {window} of 20 tokens")
    if window is not None:
        cache = ours.new_cache(1, 20)
        ours.logits(ours.space.encode([[1] * ours.space.length])[:, :20], cache)
        held = [layer[0].shape[-2] for layer in cache.layers.values()]
        assert held == [window] * 2  # tokens a layer remembers
