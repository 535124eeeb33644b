"""Deep and thin, or shallow and wide? The same parameters, tokens and steps, at several depths and seeds.

    python -m recipes.depth_width tinyshakespeare.txt --steps 300 --seeds 3

All shapes have the same number of parameters in their blocks to 2 %: the perceptrons' width makes up the difference.
The last row shares layers (Liu et al. 2024, "MobileLLM", immediate block-wise sharing): every block is used twice in
a row, so its depth doubles for no parameter more. Prints validation loss, mean and half-width of a t interval.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import torch
from scipy import stats
from torch import nn

from protea.core import Phase
from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.llama import LlamaConfig
from protea.nn.activations import relu_squared
from protea.nn.attention import GQA, QKNorm
from protea.nn.block import Block, Branch
from protea.nn.mlp import MLP
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.nn.tokens import TokenEmbedding
from protea.objectives.language import packed_nll
from protea.space import Rows
from protea.spaces import Tokens
from protea.training import Budget, Gradient, fit
from protea.training.muon import muon
from protea.training.schedule import warmup_stable_decay
from recipes.speedrun import CONTEXT, NONE, blocks, characters, validation_loss

D_HEAD = 16


@dataclass(frozen=True)
class Shape:
    """`depth` different blocks of `width`, each used `uses` times in a row."""

    depth: int
    width: int
    uses: int = 1


SHAPES = (Shape(1, 144), Shape(2, 112), Shape(4, 80), Shape(8, 48), Shape(4, 80, uses=2))
PARAMETERS = 180_000  # of the blocks


def d_ff(shape: Shape, wanted: int = PARAMETERS) -> int:
    """The perceptron's width that gives the blocks that many parameters."""
    d = shape.width
    return round((wanted / shape.depth - 4 * d**2 - 2 * d - 2 * D_HEAD) / (2 * d))


def shaped(layers: int, wanted: int, vocabulary: int = 256) -> LlamaConfig:
    """A Llama of that many layers and, embeddings included, that many parameters to 2 %: as wide as 12 L d^2 allows."""
    d = D_HEAD * max(1, round(math.sqrt(wanted / (12 * layers)) / D_HEAD))
    while True:
        wide = round(((wanted - vocabulary * d - d) / layers - 4 * d**2 - 2 * d) / (3 * d))
        if wide >= d or d == D_HEAD:
            heads = d // D_HEAD
            return LlamaConfig(layers, d, heads, heads, max(wide, 1), CONTEXT, tie=True)
        d -= D_HEAD


def parameters(name: str, config: LlamaConfig, vocabulary: int = 256) -> int:
    """Parameters of an architecture's network."""
    return sum(p.numel() for p in ARCHITECTURES[name].build(config, vocabulary, vocabulary).parameters())


def build(shape: Shape, vocabulary: int, seed: int = 0, wanted: int = PARAMETERS) -> LanguageModel:
    """The network of a shape."""
    torch.manual_seed(seed)
    d = shape.width
    rope = RoPE(rope_frequencies(D_HEAD, 1000.0))

    def block() -> Block:
        heads = d // D_HEAD
        attention = GQA(d, heads, heads, position=rope, qk_norm=QKNorm(RMSNorm(D_HEAD), RMSNorm(D_HEAD)))
        perceptron = MLP(d, d_ff(shape, wanted), relu_squared, bias=False)
        return Block([Branch(RMSNorm(d), attention), Branch(RMSNorm(d), perceptron)])

    different = [block() for _ in range(shape.depth)]
    used = [b for b in different for _ in range(shape.uses)]
    net = init_decoder(Decoder(TokenEmbedding(vocabulary, d), used, RMSNorm(d), vocabulary))
    nn.init.zeros_(net.head.weight)
    return LanguageModel(Tokens(CONTEXT, vocabulary=vocabulary, tokenizer="ids"), net, CONTEXT)


def run(shape: Shape, path: str, steps: int, seed: int, batch: int = 12) -> tuple[float, float]:
    """Validation loss and seconds of one run."""
    train, validation, vocabulary = characters(path)
    model = build(shape, vocabulary, seed)
    phase = Phase("nll", list(model.parameters()), packed_nll(model, NONE))
    learner = Gradient(model, [phase], optimizer=muon(0.02, adam_lr=0.01), schedule=warmup_stable_decay(10, 0.6),
                       ema=None)  # fmt: skip
    rows = blocks(train)
    start = time.perf_counter()
    fit(model, Rows(rows, None, torch.arange(len(rows))), learner=learner, budget=Budget(steps=steps), seed=seed,
        batch_size=batch, judge=None, progress=None)  # fmt: skip
    return validation_loss(model, validation), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a text file")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for shape in SHAPES:
        model = build(shape, characters(given.text)[2])
        n = sum(p.numel() for p in model.net.blocks.parameters())
        runs = [run(shape, given.text, given.steps, seed) for seed in range(given.seeds)]
        losses = [loss for loss, _ in runs]
        half = 0.0
        if len(losses) > 1:
            half = stats.t.ppf(0.975, len(losses) - 1) * statistics.stdev(losses) / math.sqrt(len(losses))
        print(f"{shape.depth * shape.uses} layers ({shape.depth} different), width {shape.width}: {n:,} parameters, "
              f"{statistics.mean(losses):.4f} +- {half:.4f} nats, {runs[0][1]:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
