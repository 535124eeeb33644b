"""Mamba against transformers' MambaForCausalLM."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("as published: tied, no biases", {"state_size": 8}),
        (
            "untied, three taps, other widths",
            {"state_size": 5, "conv_kernel": 3, "expand": 3, "time_step_rank": 4, "tie_word_embeddings": False},
        ),
        ("no bias in the convolution", {"state_size": 4, "use_conv_bias": False}),
    ],
)
def test_mamba(parity, note, options):
    ours = parity(transformers.MambaConfig(**SIZE, **options), id="AR-21", system="Mamba", note=note)
    assert ours.architecture == "mamba"


def test_mamba_with_biases(parity):
    """Their padding lets W_in's bias into the convolution; rows are compared one by one."""
    config = transformers.MambaConfig(**SIZE, state_size=4, use_bias=True)
    parity(config, id="AR-21", system="Mamba", note="biases of the projections", padded=False)


def test_parameter_count_of_the_published_size(evidence):
    """state-spaces/mamba-130m: 129,135,360 parameters, embedding tied."""
    from protea.models.autoregressive.mamba import ARCHITECTURE, MambaConfig

    c = MambaConfig(n_layers=24, d_model=768, dt_rank=48)
    with torch.device("meta"):
        ours = ARCHITECTURE.build(c, 50280, 50280)
        theirs = transformers.MambaForCausalLM(transformers.MambaConfig(num_hidden_layers=24))
    difference = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in theirs.parameters())
    evidence(
        id="AR-21",
        system="Mamba",
        claim="parameters of Mamba-130M, difference",
        reference="transformers, meta device",
        reached=abs(difference),
        tolerance=0,
    )
