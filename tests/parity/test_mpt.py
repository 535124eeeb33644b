"""MPT against transformers' MptForCausalLM: ALiBi in a whole model."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("heads", "tie"), [(4, True), (6, False)])
def test_mpt(parity, heads, tie):
    config = transformers.MptConfig(
        vocab_size=61, d_model=48, n_heads=heads, n_layers=2, max_seq_len=32, tie_word_embeddings=tie
    )
    parity(config, id="AR-28", system="MPT (ALiBi)", note=f"{heads} heads, {'tied' if tie else 'untied'}")
