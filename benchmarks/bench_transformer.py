"""A training step of the decoder against transformers' Llama with the same sizes (4 layers, 128 wide, 12 x 64 tokens).

What limits us (torch.profiler, two threads): matrix products, 49 %, then elementwise products (RMSNorm, SwiGLU and
rotary positions), 20 %.
"""

from __future__ import annotations

import torch
from harness import compare, save
from transformers import LlamaConfig, LlamaForCausalLM

from protea.models import MODELS
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.transformer import TransformerConfig
from protea.spaces import Tokens

LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY, BATCH, LENGTH = 4, 128, 4, 344, 256, 12, 64


def main() -> None:
    x = torch.randint(VOCABULARY, (BATCH, LENGTH))
    config = TransformerConfig(
        n_layers=LAYERS, d_model=WIDTH, n_heads=HEADS, n_kv_heads=HEADS, d_ff=HIDDEN, context=LENGTH
    )
    space = Tokens(LENGTH, vocabulary=VOCABULARY)
    ours = MODELS["transformer"].build(space, config)
    assert isinstance(ours, LanguageModel)
    peer = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY + 1, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
    ))  # fmt: skip
    adam = [torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (ours, peer)]

    def our_step() -> None:
        adam[0].zero_grad()
        (-ours.log_prob(x).mean() / LENGTH).backward()
        adam[0].step()

    def peer_step() -> None:
        adam[1].zero_grad()
        peer(x, labels=x).loss.backward()
        adam[1].step()

    save("transformer", [compare("training step", our_step, peer_step, rounds=15, note=f"{BATCH * LENGTH} tokens")])


if __name__ == "__main__":
    main()
