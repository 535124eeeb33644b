"""muP: hidden states move as much at every width (coordinate check), and the best rate carries over."""

from __future__ import annotations

import pytest
import torch

from protea.core import Batch, Phase
from protea.errors import ConfigError
from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.nn.context import plain_context
from protea.objectives.likelihood import token_nll
from protea.rng import Streams
from protea.spaces import Tokens
from protea.training import Gradient
from protea.training.dial import dial
from protea.training.mup import mup_adamw, mup_init, widths
from protea.training.optim import adamw
from protea.training.schedule import constant

V, T = 17, 16


def network(width: int, seed: int = 0):
    torch.manual_seed(seed)
    config = TransformerConfig(n_layers=2, d_model=width, n_heads=width // 16, n_kv_heads=width // 16, d_ff=2 * width,
                               context=T)  # fmt: skip
    return build(Tokens(T, vocabulary=V, tokenizer="ids"), config)


def batch(step: int) -> Batch:
    """Counting with a stride that a text keeps: x_t = a + t s mod 17."""
    g = torch.Generator().manual_seed(step)
    a, s = torch.randint(V, (16, 1), generator=g), torch.randint(1, 4, (16, 1), generator=g)
    return Batch((a + s * torch.arange(T)) % V, None, Streams(step, 16))


def learn(width: int, lr: float, steps: int, mup: bool, seed: int = 0):
    model = network(width, seed)
    base = widths(network(32))
    if mup:
        mup_init(model, base)
    made = mup_adamw(lr, base) if mup else adamw(lr, weight_decay=0.0, betas=(0.9, 0.95))
    phase = Phase("nll", list(model.parameters()), token_nll(model))
    learner = Gradient(model, [phase], optimizer=made, schedule=constant(), ema=None, clip=None)
    losses = [learner.step(batch(i))["loss"] for i in range(steps)]
    return model, sum(losses[-10:]) / len(losses[-10:])


def movement(width: int, mup: bool) -> tuple[float, float]:
    """Root mean square change of the last hidden states and of the logits in four steps, over three seeds."""
    moved = []
    for seed in range(3):
        start, (end, _) = network(width, seed), learn(width, 5e-3, 4, mup, seed)
        if mup:
            mup_init(start, widths(network(32)))
        x, ctx = batch(99).x, plain_context(T)
        with torch.no_grad():
            streams = []
            for model in (start, end):
                h = model.net.embed(x, ctx)
                for layer, block in enumerate(model.net.blocks):
                    h = block(h, ctx.at(layer))
                streams.append((h, model.net(x)))
            moved.append([float((b - a).square().mean().sqrt()) for a, b in zip(*streams)])
    hidden, logits = torch.tensor(moved).mean(0).tolist()
    return hidden, logits


def test_coordinate_check(evidence) -> None:
    """From a width of 32 to one of 256 the change of hidden states and logits stays; under plain rates it grows."""
    (h_1, l_1), (h_8, l_8) = movement(32, True), movement(256, True)
    (p_1, q_1), (p_8, q_8) = movement(32, False), movement(256, False)
    for name, ratio in (("hidden states", h_8 / h_1), ("logits", l_8 / l_1)):
        evidence(id="TS-09", system="muP", claim=f"change of {name} in 4 steps, width 256 over width 32", unit="factor",
                 reference="1 (Yang et al. 2022)", tolerance=2.0, reached=max(ratio, 1 / ratio))  # fmt: skip
    assert p_8 / p_1 > 1.5 * h_8 / h_1 and q_8 / q_1 > 2 * l_8 / l_1


@pytest.mark.slow
def test_best_rate_carries_over(evidence) -> None:
    """The best rate of a width of 32, from a grid in steps of 2, is within one step that of a width of 128."""
    grid = [2.0**-k for k in range(3, 10)]
    best = {w: min(range(len(grid)), key=lambda i: learn(w, grid[i], 60, True)[1]) for w in (32, 128)}
    evidence(id="TS-09", system="muP", claim="best learning rate of width 32 and of width 128", unit="octaves apart",
             reference="the same (Yang et al. 2022)", tolerance=1.0, reached=abs(best[32] - best[128]))  # fmt: skip


def test_bad_input() -> None:
    model = network(32)
    with pytest.raises(ConfigError, match="no 'net"):
        mup_adamw(1e-3, {})(model, list(model.parameters()))
    with pytest.raises(ConfigError, match="0 parameters end"):
        mup_init(model, widths(model), head="tail.weight")


# ---- the dial


def test_deeper_is_larger_in_everything() -> None:
    small, large = dial(4, 32768), dial(20, 32768)
    assert large.parameters > 20 * small.parameters and large.tokens == 20 * large.parameters
    assert large.batch_tokens > small.batch_tokens and large.table_rate < small.table_rate * 5**0.5
    for d in (small, large):
        assert d.d_model % d.n_heads == 0 and d.rows * d.context == d.batch_tokens
        assert abs(d.steps * d.batch_tokens / d.tokens - 1) < 0.01
    with pytest.raises(ConfigError, match="Depth 0"):
        dial(0, 10)


def test_a_dialled_model_learns() -> None:
    d = dial(1, V, context=T, tokens=60 * 16 * T)
    torch.manual_seed(0)
    model = build(Tokens(T, vocabulary=V, tokenizer="ids"), TransformerConfig(**d.shape()))
    phase = Phase("nll", list(model.parameters()), token_nll(model))
    learner = Gradient(model, [phase], optimizer=d.optimizer(), schedule=d.schedule(), ema=None)
    learner.horizon = 60
    losses = [learner.step(batch(i))["loss"] for i in range(60)]
    assert losses[-1] < 0.6 * losses[0]
