"""xLSTM against transformers' xLSTMForCausalLM, whose layers are matrix memories alone."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "mode": "inference", "use_cache": False}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("as published", {"num_heads": 4, "chunk_size": 8}),
        (
            "one head, keys as wide as values, other caps",
            {
                "num_heads": 1,
                "qk_dim_factor": 1.0,
                "ffn_proj_factor": 1.7,
                "ffn_round_up_to_multiple_of": 16,
                "gate_soft_cap": 3.0,
                "output_logit_soft_cap": 5.0,
                "chunk_size": 16,
            },
        ),
        ("values wider than the stream", {"num_heads": 2, "v_dim_factor": 2.0, "eps": 1e-3, "norm_eps": 1e-4}),
    ],
)
def test_xlstm(parity, note, options):
    """They ignore the attention mask: padded rows are compared with theirs alone."""
    config = transformers.xLSTMConfig(**SIZE, **options)
    ours = parity(config, id="AR-22", system="xLSTM", note=note, padded=False)
    assert ours.architecture == "xlstm"


def test_scalar_memories_have_no_place_in_their_folder(tmp_path):
    from protea.errors import NotSupported
    from protea.interop.huggingface import save_pretrained
    from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    from protea.spaces import Tokens

    model = language_model("xlstm", Tokens(8), ARCHITECTURES["xlstm"].scaled(2, 16, 8))
    with pytest.raises(NotSupported, match="scalar"):
        save_pretrained(model, tmp_path)
