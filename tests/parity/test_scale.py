"""Published sizes: parameters of the papers' configurations, built without memory on the meta device."""

from __future__ import annotations

import json

import pytest
import torch

from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.models.autoregressive.gpt2 import GPT3
from protea.models.autoregressive.gpt2 import GPT2Config as GPT2


def count(name, config, vocabulary):
    with torch.device("meta"):
        net = ARCHITECTURES[name].build(config, vocabulary, vocabulary)
    return sum(p.numel() for p in net.parameters()), net


LLAMA3 = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
}  # fmt: skip


def test_llama_3_8b(evidence):
    n, _ = count("llama", ARCHITECTURES["llama"].hf.read(LLAMA3), 128256)
    evidence(id="AR-20", system="Llama-3-8B", claim="parameters less the published count", unit="parameters",
             reference="8,030,261,248 (Meta-Llama-3-8B)", reached=abs(n - 8_030_261_248), tolerance=0)  # fmt: skip


def test_gpt_3_175b(evidence):
    """96 layers of 12,288: every second one banded."""
    n, net = count("gpt3", GPT3, 50257)
    evidence(id="AR-08", system="GPT-3 175B", claim="parameters less those of GPT2LMHeadModel of that size",
             reference="174,604,259,328", reached=abs(n - 174_604_259_328), tolerance=0, unit="parameters")  # fmt: skip
    windows = [block.branches[0].mixer.window for block in net.blocks]
    assert windows[::2] == [None] * 48 and windows[1::2] == [256] * 48


def test_gpt_3_counts_as_transformers_does():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048, vocab_size=50257)
        )
    assert sum(p.numel() for p in theirs.parameters()) == 174_604_259_328


PUBLISHED = [  # config.json as published, and the count that follows from it in transformers
    ("gpt2", GPT2(), 50257, 124_439_808),
    ("gpt2", GPT2(48, 1600, 25, 6400), 50257, 1_557_611_200),
    ("mistral", {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8}, 32000, 7_241_732_096),
    ("qwen2", {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
               "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}, 151936, 494_032_768),
    ("qwen3", {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
               "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
     151936, 596_049_920),
    ("gemma2", {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}, 256000, 2_614_341_888),
    ("gemma3", {"vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}, 262144, 999_885_952),
    ("cohere2", {"vocab_size": 256000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8}, 256000, 8_028_033_024),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "vocabulary", "published"), PUBLISHED)
def test_published_models(name, config, vocabulary, published, evidence):
    config = ARCHITECTURES[name].hf.read(json.loads(json.dumps(config))) if isinstance(config, dict) else config
    n, _ = count(name, config, vocabulary)
    evidence(id="AR-12", system=name, claim="parameters of a published size", reference=f"{published:,}",
             reached=abs(n - published), tolerance=0, unit="parameters")  # fmt: skip
