"""A training step of the decoder against transformers' Llama with the same sizes (4 layers, 128 wide, 12 x 64 tokens).

The peer is the plain eager loop people write: the model's own loss, `torch.optim.AdamW`. Ours is the library's model
and optimizer. Three rows: the same float32 arithmetic; the same, compiled (`prepare=compiled`; the peer stays eager);
and with bfloat16 products where the hardware multiplies them natively (`precision="auto"`; the peer stays in float32).

What limits us (perf, one thread, of the eager step's time): float32 matrix products 64 %, the peer's own (they multiply
at 115 GFLOP/s where a core's most is 118, but a fifth of their time is MKL's copying and clearing; a kernel of our own,
2 % faster alone, gained nothing in the step); Python and dispatch 12 %, attention 7 %, the other compiled kernels 4 %,
memory management 5 %, AdamW 1 %.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import compare, save
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from protea.models import MODELS
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.transformer import TransformerConfig
from protea.spaces import Tokens
from protea.training.optim import adamw
from protea.training.precision import autocast, compiled, resolve

LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY, BATCH, LENGTH = 4, 128, 4, 344, 256, 12, 64


class Holder(nn.Module):
    """What `compiled` prepares."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def our_step(x: torch.Tensor, precision: str = "fp32", compile_it: bool = False) -> Callable[[], None]:
    """A training step of our model."""
    config = TransformerConfig(
        n_layers=LAYERS, d_model=WIDTH, n_heads=HEADS, n_kv_heads=HEADS, d_ff=HIDDEN, context=LENGTH
    )
    model = MODELS["transformer"].build(Tokens(LENGTH, vocabulary=VOCABULARY), config)
    assert isinstance(model, LanguageModel)
    if compile_it:
        compiled(Holder(model))
    params = list(model.parameters())
    adam = adamw(1e-3)(model, params)
    dtype, _ = resolve(precision, torch.device("cpu"))  # type: ignore[arg-type]

    def step() -> None:
        for p in params:
            p.grad = None
        with autocast(dtype, torch.device("cpu")):
            loss = -model.log_prob(x).sum() / x.numel()
        loss.backward()
        adam.step()

    return step


def main() -> None:
    x = torch.randint(VOCABULARY, (BATCH, LENGTH))
    peer = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY + 1, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
    ))  # fmt: skip
    adam = torch.optim.AdamW(peer.parameters(), lr=1e-3)

    def peer_step() -> None:
        adam.zero_grad()
        peer(x, labels=x).loss.backward()
        adam.step()

    note = f"{BATCH * LENGTH} tokens"
    ours = {"training step": our_step(x), "training step, compiled": our_step(x, compile_it=True)}
    if resolve("auto", torch.device("cpu"))[0] == torch.bfloat16:
        ours["training step, bfloat16 products"] = our_step(x, "auto")
    save("transformer", [compare(name, step, peer_step, rounds=15, note=note) for name, step in ours.items()])


if __name__ == "__main__":
    main()
