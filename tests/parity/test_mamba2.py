"""Mamba-2 against transformers' Mamba2ForCausalLM."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "chunk_size": 8}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("one group, untied", {"num_heads": 4, "head_dim": 16, "n_groups": 1}),
        ("as many groups as heads, tied", {"num_heads": 8, "head_dim": 8, "n_groups": 8, "tie_word_embeddings": True}),
        (
            "two groups, three taps without bias",
            {"num_heads": 4, "head_dim": 16, "n_groups": 2, "conv_kernel": 3, "use_conv_bias": False},
        ),
    ],
)
def test_mamba2(parity, note, options):
    ours = parity(transformers.Mamba2Config(**SIZE, **options), id="AR-21", system="Mamba-2", note=note)
    assert ours.architecture == "mamba2"


def test_mamba2_with_biases(parity):
    """Their padding lets W_in's bias into the convolution; rows are compared one by one."""
    config = transformers.Mamba2Config(**SIZE, num_heads=4, head_dim=16, n_groups=1, use_bias=True)
    parity(config, id="AR-21", system="Mamba-2", note="biases of the projections", padded=False)


def test_a_limit_of_the_step_is_refused(tmp_path):
    from protea.errors import DataError
    from protea.interop.huggingface import from_pretrained

    config = transformers.Mamba2Config(**SIZE, num_heads=4, head_dim=16, n_groups=1, time_step_limit=(0.0, 0.2))
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="step size"):
        from_pretrained(tmp_path)
