r"""The speedrun: tinyshakespeare characters to nanoGPT's final validation loss, on two cores, as fast as can be.

    python -m recipes.speedrun tinyshakespeare.txt --rung ours

nanoGPT's configuration for a CPU (4 layers, 4 heads, 128 wide, 64 characters of context, batches of 12, 2,000 steps;
github.com/karpathy/nanoGPT, README, "I only have a macbook") ends at a validation loss of 1.88 nats per character.
The target is 1.886, what it reaches on the split below. The rules are its own: the first 90 % of the characters for
training, the last 10 % for validation, no more than 64 characters of context. The loss is the mean over all 1,742
whole blocks of 64 characters of the validation text, each predicted from a block's own characters alone.

`RUNGS` is the ladder: each rung changes one thing, and its steps are as many as it needs. `bench_speedrun.py` times
all of them beside nanoGPT's own loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from protea.core import Phase
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.language import LanguageModel
from protea.nn.activations import gelu_tanh, relu_squared
from protea.nn.attention import GQA, QKNorm
from protea.nn.block import Block, Branch
from protea.nn.mlp import MLP
from protea.nn.ngram_embedding import NGramEmbedding
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.nn.tokens import TokenEmbedding
from protea.objectives.language import packed_nll, token_losses
from protea.space import Rows
from protea.spaces import Tokens
from protea.training import Budget, Gradient, fit
from protea.training.muon import muon
from protea.training.optim import adamw
from protea.training.schedule import Schedule, warmup_cosine, warmup_stable_decay

TARGET = 1.886  # nats per character
CONTEXT = 64
NONE = -2  # an id that begins no document: the text is one


@dataclass(frozen=True)
class Rung:
    """One run.

    Args:
        steps, batch: how many, and rows of 64 characters of each.
        layers, width, heads: of the network; the perceptron is four times as wide.
        activation: of the perceptron.
        ngrams: sizes of hashed n-grams in the embedding.
        matrices: learning rate of hidden matrices.
        tables: learning rate of embeddings, head and gains.
        orthogonal: whether hidden matrices learn by Muon, not AdamW.
        schedule: of the rates.
    """

    steps: int
    batch: int = 12
    layers: int = 4
    width: int = 128
    heads: int = 4
    activation: Callable[[Tensor], Tensor] = relu_squared
    ngrams: tuple[int, ...] = ()
    matrices: float = 0.02
    tables: float = 0.01
    orthogonal: bool = True
    schedule: Schedule = warmup_stable_decay(10, 0.6)  # noqa: RUF009 (a pure function)


_adam = Rung(1000, activation=gelu_tanh, matrices=3e-3, tables=3e-3, orthogonal=False, schedule=warmup_cosine(50, 0.0))
RUNGS: dict[str, Rung] = {
    "blocks": _adam,  # RMSNorm, rotary positions, normed queries and keys, zero-started outputs, rates to zero
    "relu2": replace(_adam, activation=relu_squared),
    "muon": Rung(320),
    "shallow": Rung(380, layers=2),
    "bigrams": Rung(300, layers=2, ngrams=(2,)),
    "ours": Rung(200, layers=2, ngrams=(2, 3), tables=0.02),
}
BUCKETS = 1 << 14


def characters(path: Path | str) -> tuple[Tensor, Tensor, int]:
    """Training and validation ids, and how many different characters there are."""
    text = Path(path).read_text(encoding="utf-8")
    known = sorted(set(text))
    number = {c: i for i, c in enumerate(known)}
    ids = torch.tensor([number[c] for c in text])
    n = int(0.9 * len(ids))
    return ids[:n], ids[n:], len(known)


def blocks(ids: Tensor) -> Tensor:
    """(N, 65): all whole blocks of 64 characters, each with the character that follows it."""
    n = (len(ids) - 1) // CONTEXT
    return ids.as_strided((n, CONTEXT + 1), (CONTEXT, 1))


@torch.no_grad()
def validation_loss(model: nn.Module, ids: Tensor) -> float:
    """Mean nats per character over all blocks."""
    model.eval()
    parts = [token_losses(model, rows, NONE) for rows in blocks(ids).split(256)]  # type: ignore[arg-type]
    return sum(float(total) for total, _ in parts) / sum(int(n) for _, n in parts)


def build(rung: Rung, vocabulary: int, seed: int = 0) -> LanguageModel:
    """The network of a rung."""
    torch.manual_seed(seed)
    d, d_head = rung.width, rung.width // rung.heads
    rope = RoPE(rope_frequencies(d_head, 1000.0))

    def block() -> Block:
        norms = QKNorm(RMSNorm(d_head), RMSNorm(d_head))
        attention = GQA(d, rung.heads, rung.heads, position=rope, qk_norm=norms)
        perceptron = MLP(d, 4 * d, rung.activation, bias=False)
        return Block([Branch(RMSNorm(d), attention), Branch(RMSNorm(d), perceptron)])

    embed = NGramEmbedding(vocabulary, d, rung.ngrams, BUCKETS) if rung.ngrams else TokenEmbedding(vocabulary, d)
    net = init_decoder(Decoder(embed, [block() for _ in range(rung.layers)], RMSNorm(d), vocabulary))
    for name, p in net.named_parameters():
        if name.endswith(("mixer.o.weight", "mixer.down.weight", "head.weight", "grams.weight")):
            nn.init.zeros_(p)
    return LanguageModel(Tokens(CONTEXT, vocabulary=vocabulary, tokenizer="ids"), net, CONTEXT)


def run(rung: Rung, path: Path | str, seed: int = 0) -> dict[str, float]:
    """Train; returns seconds (all but the last validation), steps, parameters and the validation loss."""
    start = time.perf_counter()
    train, validation, vocabulary = characters(path)
    model = build(rung, vocabulary, seed)
    made = muon(rung.matrices, adam_lr=rung.tables, betas=(0.9, 0.99)) if rung.orthogonal else adamw(
        rung.matrices, weight_decay=0.1, betas=(0.9, 0.99))  # fmt: skip
    phase = Phase("nll", list(model.parameters()), packed_nll(model, NONE))
    learner = Gradient(model, [phase], optimizer=made, schedule=rung.schedule, ema=None)
    rows = blocks(train)
    fit(model, Rows(rows, None, torch.arange(len(rows))), learner=learner, budget=Budget(steps=rung.steps), seed=seed,
        batch_size=rung.batch, judge=None, progress=None)  # fmt: skip
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "steps": rung.steps, "parameters": sum(p.numel() for p in model.parameters()),
            "validation_loss": validation_loss(model, validation)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="tinyshakespeare.txt")
    parser.add_argument("--rung", default="ours", choices=RUNGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = run(RUNGS[given.rung], given.text, given.seed)
    print(f"{given.rung}: {found['validation_loss']:.4f} nats per character after {found['seconds']:.1f} s "
          f"({found['steps']} steps, {found['parameters']:,} parameters; target {TARGET})")  # fmt: skip


if __name__ == "__main__":
    main()
