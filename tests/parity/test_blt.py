"""The Byte Latent Transformer against transformers' BltForCausalLM and BltPatcher."""

from __future__ import annotations

import pytest
import torch

from protea.errors import ConfigError
from protea.models.autoregressive.blt_config import BLTConfig
from protea.nn.patching import entropy, level, patch_starts, shifted

transformers = pytest.importorskip("transformers")
blt = pytest.importorskip("transformers.models.blt.modeling_blt")


def config(threshold: float, k: int, window: int | None, kv: int, longest: int | None = None):
    def part(d: int, layers: int, heads: int, **more):
        return {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 61,
                "num_key_value_heads": min(kv, heads), "intermediate_size": 2 * d, **more}  # fmt: skip

    local = {"cross_attn_k": k, "hidden_size_global": 32}
    return transformers.BltConfig(
        vocab_size=61, max_position_embeddings=64, cross_attn_k=k, patching_threshold=threshold,
        local_attention_window_len=window, max_patch_length=longest, encoder_hash_byte_group_vocab=53,
        encoder_hash_byte_group_size=[3, 5, 8], encoder_config=part(16, 2, 2, cross_attn_all_layers=False, **local),
        decoder_config=part(16, 2, 4, cross_attn_all_layers=True, **local), global_config=part(32, 2, 4),
        patcher_config=part(24, 1, 2, sliding_window=window),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("patches of a few bytes, as wide as the latent", {"threshold": 3.55, "k": 2, "window": None, "kv": 4}),
        ("windows, grouped heads, a projection to the latent", {"threshold": 3.6, "k": 1, "window": 7, "kv": 1}),
        ("every byte a patch", {"threshold": 0.0, "k": 2, "window": 64, "kv": 2}),
        ("two patches", {"threshold": 9.0, "k": 3, "window": 64, "kv": 2}),
    ],
)
def test_blt(parity, note, options):
    """Their attention mask does not reach the patcher: padded rows are compared with theirs alone."""
    ours = parity(config(**options), id="AR-43", system="Byte latent transformer", note=note, padded=False, length=24)
    assert ours.architecture == "blt"
    x = torch.randint(0, 61, (4, 24))
    begun = int(ours.net.starts(x).sum())
    low, high = {0.0: (96, 96), 9.0: (8, 8)}.get(options["threshold"], (15, 85))
    assert low <= begun <= high  # of 96 bytes


@torch.no_grad()
def test_a_limit_of_the_patches(hf, tmp_path, evidence):
    """A limit cuts patches where theirs does; their last byte does not know that a full patch ends with it."""
    from protea.interop.huggingface import from_pretrained

    theirs = hf.random_model(config(3.62, 2, None, 4, longest=3))
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    x = torch.randint(0, 61, (4, 24))
    want, got = theirs(x, use_cache=False).logits, ours.logits(x)
    reached = ((got - want)[:, :-1].abs().max() / want.abs().max()).item()
    evidence(
        id="AR-43", system="Byte latent transformer", claim="logits, prefill (patches of 3 bytes at most)",
        reference="transformers.BltForCausalLM", reached=reached, tolerance=1e-4, unit="relative",
    )  # fmt: skip


@pytest.mark.parametrize("longest", [None, 2, 5])
@pytest.mark.parametrize("theta", [0.2, 0.5, 0.8, 2.0])
def test_boundaries_are_those_of_their_patcher(theta, longest, evidence):
    """The same entropies, cut by both."""
    H = torch.rand(6, 50, generator=torch.Generator().manual_seed(0))
    score = level(H, shifted(H))
    got = patch_starts(score, theta, torch.arange(50)[None].expand(6, -1), longest)[0]
    differ = 0
    for row in range(6):  # one by one: theirs pads ragged rows with lengths that do not add up
        lengths = blt.BltPatcher.patch_lengths_from_entropies(H[row : row + 1], 50, patch_size=4, threshold=theta)
        lengths = blt.process_patch_lengths(lengths, longest)[0]
        begins = (lengths.cumsum(0) - lengths)[lengths > 0]
        want = torch.zeros(50, dtype=torch.bool)
        want[begins] = True
        differ += int((want != got[row]).sum())
    evidence(
        id="AR-44", system="Entropy patches", claim=f"boundaries that differ, theta {theta}, at most {longest} bytes",
        reference="transformers.BltPatcher", reached=differ, tolerance=0, unit="bytes of 300",
    )  # fmt: skip


@torch.no_grad()
def test_entropies_are_those_of_their_patcher(hf, tmp_path, evidence):
    from protea.interop.huggingface import from_pretrained
    from protea.nn.context import plain_context

    theirs = hf.random_model(config(3.5, 2, 9, 2))
    theirs.save_pretrained(tmp_path)
    ours, x = from_pretrained(tmp_path), torch.randint(0, 61, (3, 30))
    want = theirs.model.patcher(x, patch_size=4, threshold=3.5)[0]
    got = entropy(ours.net.patcher.logits(x, plain_context(30)))
    evidence(
        id="AR-44", system="Entropy patches", claim="entropies of the next byte", unit="nats",
        reference="transformers.BltPatcher", reached=(got - want).abs().max().item(), tolerance=1e-4,
    )  # fmt: skip


def test_encoder_and_decoder_are_equally_wide():
    with pytest.raises(ConfigError, match="encoder is 64 wide and the decoder 32"):
        BLTConfig(decoder=(2, 32, 2, 2, 80))
