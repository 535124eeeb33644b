"""Mixtral, Qwen2-MoE and Qwen3-MoE against transformers, and Mixtral's published size."""

from __future__ import annotations

import pytest
import torch

from protea.models.autoregressive import mixtral
from protea.nn.router import Router

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("8 experts, top-2", {}),
        ("sliding window, tied, top-1", {"sliding_window": 7, "tie_word_embeddings": True, "num_experts_per_tok": 1}),
        ("3 experts, all chosen, wide heads",
         {"num_local_experts": 3, "num_experts_per_tok": 3, "head_dim": 16}),
    ],
)  # fmt: skip
def test_mixtral(parity, note, options):
    ours = parity(transformers.MixtralConfig(**{**SIZE, **options}), id="AR-31", system="Mixtral", note=note)
    assert ours.architecture == "mixtral"


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("shared expert, not normalised", {}),
        ("normalised, every second layer dense", {"norm_topk_prob": True, "decoder_sparse_step": 2}),
    ],
)
def test_qwen2_moe(parity, note, options):
    config = transformers.Qwen2MoeConfig(
        **SIZE, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=36,
        **options,
    )  # fmt: skip
    parity(config, id="AR-47", system="Qwen2-MoE", note=note)


@pytest.mark.parametrize(
    ("note", "options"),
    [("not normalised", {}), ("normalised, first layer dense", {"norm_topk_prob": True, "mlp_only_layers": [0]})],
)
def test_qwen3_moe(parity, note, options):
    config = transformers.Qwen3MoeConfig(
        **SIZE, head_dim=12, num_local_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, **options
    )
    parity(config, id="AR-47", system="Qwen3-MoE", note=note)


def active(net: torch.nn.Module, top_k: int) -> int:
    """Parameters that one token uses: all but the experts it does not go to."""
    idle = 0
    for name, p in net.named_parameters():
        if ".experts." in name:
            idle += p.numel() // len(p) * (len(p) - top_k)
    return sum(p.numel() for p in net.parameters()) - idle


def test_mixtral_8x7b_has_its_published_size(evidence):
    config = mixtral.MixtralConfig(
        n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_ff=14336, n_experts=8, top_k=2, context=32768
    )
    with torch.device("meta"):
        net = mixtral.build(config, 32000, 32000)
    n = sum(p.numel() for p in net.parameters())
    evidence(id="AR-31", system="Mixtral", claim="parameters of 8x7B, off by", reference="46,702,792,704",
             reached=abs(n - 46_702_792_704), tolerance=0)  # fmt: skip
    evidence(id="AR-31", system="Mixtral", claim="active parameters of 8x7B, off by", reference="12.9 billion",
             reached=abs(active(net, 2) / 1e9 - 12.9), tolerance=0.05, unit="billion")  # fmt: skip
    assert active(net, 2) < n


def test_every_layer_of_an_imported_model_can_count_its_load(parity):
    config = transformers.MixtralConfig(**SIZE)
    ours = parity(config, id="AR-31", system="Mixtral", note="then trained")
    ours.train()
    ours.log_prob(torch.randint(0, 61, (2, ours.space.length)))
    for router in (m for m in ours.modules() if isinstance(m, Router)):
        assert router.load.sum() == 2 * ours.space.length * 2
