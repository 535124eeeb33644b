"""What routing does to a mixture of experts: loss, load and dropped tokens of each mechanism at equal work per token.

    python -m recipes.routing CORPUS.txt --steps 400 --seeds 3

trains the same small network once for each router and seed, and prints held-out bits per byte (mean and half-width of
a t interval over the seeds), the load's coefficient of variation and maximum violation and the dead experts on
held-out text, and the share of tokens dropped in training. Every router activates the same number of parameters a
token, and every sparse one holds the same number in all. `specialisation` asks whether experts follow domains.

Expert choice sees the future (`protea.nn.router_choices.ExpertChoice`): its bits per byte are no likelihood, and are
marked with a star.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from protea.core import Batch, Phase
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.language import LanguageModel
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import SwiGLU
from protea.nn.moe import Experts, MoE
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.nn.router import Balance, HashRouter, LearnedRouter, Router
from protea.nn.router_choices import Affinity, ExpertChoice, TopK
from protea.nn.router_losses import SwitchBalance, ZLoss
from protea.nn.tokens import TokenEmbedding
from protea.objectives.likelihood import token_nll
from protea.rng import Streams
from protea.spaces import Tokens
from protea.training.experts import BalanceExperts, load_figures, routers
from protea.training.gradient import Gradient
from protea.training.optim import adamw

T, D, LAYERS, WIDTH = 64, 64, 2, 96  # WIDTH: inside the experts of one token, together
BALANCED: tuple[Balance, ...] = (SwitchBalance(0.01), ZLoss(1e-3))


@dataclass(frozen=True)
class Recipe:
    """One line of the table: E experts, k of them a token, each WIDTH / k wide; and who balances them."""

    name: str
    n_experts: int
    k: int
    router: Callable[[int, int], Router]  # of E and the layer
    bias_rate: float = 0.0
    causal: bool = True


def learned(choice: Callable[[int], nn.Module], losses: Sequence[Balance] = ()) -> Callable[[int, int], Router]:
    """Routers of a choice (of E), with losses."""
    return lambda e, layer: LearnedRouter(D, e, choice(e), losses)


RECIPES = (
    Recipe("softmax top-1, no balance", 8, 1, learned(lambda e: TopK(1, normalise=False))),
    Recipe("softmax top-1, balance + z", 8, 1, learned(lambda e: TopK(1, normalise=False), BALANCED)),
    Recipe("switch: top-1, capacity 1.25, balance + z", 8, 1,
           learned(lambda e: TopK(1, normalise=False, capacity=1.25), BALANCED)),
    Recipe("softmax top-2, no balance", 16, 2, learned(lambda e: TopK(2))),
    Recipe("softmax top-2, balance + z", 16, 2, learned(lambda e: TopK(2), BALANCED)),
    Recipe("sigmoid top-2, no balance", 16, 2, learned(lambda e: Affinity(e, 2))),
    Recipe("sigmoid top-2, biases", 16, 2, learned(lambda e: Affinity(e, 2)), bias_rate=2e-3),
    Recipe("expert choice of 2 *", 16, 2, learned(lambda e: ExpertChoice(2.0)), causal=False),
    Recipe("hash", 8, 1, lambda e, layer: HashRouter(e, 257, seed=layer)),
)  # fmt: skip


def network(recipe: Recipe | None, seed: int, width: int = D) -> LanguageModel:
    """A byte-level model of that routing; dense for None."""
    torch.manual_seed(seed)
    rope = RoPE(rope_frequencies(16))

    def block(i: int) -> Block:
        mlp: nn.Module = SwiGLU(width, WIDTH)
        if recipe is not None:
            experts = Experts(recipe.n_experts, width, WIDTH // recipe.k)
            mlp = MoE(recipe.router(recipe.n_experts, i), experts)
        attention = GQA(width, width // 16, width // 16, position=rope)
        return Block([Branch(RMSNorm(width), attention), Branch(RMSNorm(width), mlp)])

    net = Decoder(TokenEmbedding(257, width), [block(i) for i in range(LAYERS)], RMSNorm(width), 256)
    return LanguageModel(Tokens(T), init_decoder(net), T)


def rows(text: Tensor, n: int, seed: int) -> Tensor:
    """n random blocks (n, T) of bytes (N,)."""
    start = torch.randint(0, len(text) - T, (n, 1), generator=torch.Generator().manual_seed(seed))
    return text[start + torch.arange(T)].long()


def bytes_of(path: Path) -> Tensor:
    """A file's bytes, (N,) uint8."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


def train(
    model: LanguageModel, text: Tensor, steps: int, *, rate: float = 4e-3, bias_rate: float = 0.0, batch: int = 16,
    seed: int = 0,
) -> list[dict[str, float]]:  # fmt: skip
    """Figures of every step."""
    learner = Gradient(
        model, [Phase("nll", list(model.parameters()), token_nll(model))], optimizer=adamw(rate), ema=None,
        after=[BalanceExperts(bias_rate)],
    )  # fmt: skip
    learner.horizon, shown = steps, []
    model.train()
    for i in range(steps):
        x = rows(text, batch, seed * 100_000 + i)
        shown.append(dict(learner.step(Batch(x, None, Streams(seed, batch)))))
    return shown


@torch.no_grad()
def read(model: LanguageModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Nats (B,) of texts x (B, T), and how many of their tokens each expert of each layer gets, (B, layers, E)."""
    seen: list[Tensor] = []
    hooks = [r.register_forward_hook(lambda module, args, out: seen.append(out.counts())) for r in routers(model)]
    nats = -model.eval().log_prob(x)
    for hook in hooks:
        hook.remove()
    return nats, torch.stack(seen, 1) if seen else torch.empty(len(x), 0, 0)


def judge(model: LanguageModel, held_out: Tensor) -> dict[str, float]:
    """Bits per byte of held-out rows and the load there; nothing is dropped in use."""
    parts = [read(model, part) for part in held_out.split(64)]
    nats, load = torch.cat([n for n, _ in parts]), sum(counts.sum(0) for _, counts in parts)
    assert isinstance(load, Tensor)
    figures = {"bits_per_byte": float(nats.mean()) / T / math.log(2)}
    return figures | load_figures(load) if load.numel() else figures


def ablation(
    text: Tensor, held_out: Tensor, steps: int, seeds: int, recipes: Sequence[Recipe] = RECIPES
) -> list[dict[str, Any]]:
    """One row for every routing, dense first."""
    table = []
    for recipe in (None, *recipes):
        runs = []
        for seed in range(seeds):
            model = network(recipe, seed)
            shown = train(model, text, steps, seed=seed, bias_rate=recipe.bias_rate if recipe else 0.0)
            last = shown[-max(1, steps // 10) :]
            dropped = statistics.fmean(s.get("dropped_tokens", 0.0) for s in last)
            runs.append({**judge(model, held_out), "dropped_tokens": dropped})
        values = [run["bits_per_byte"] for run in runs]
        half = float(stats.t.ppf(0.975, seeds - 1)) * statistics.stdev(values) / seeds**0.5 if seeds > 1 else math.nan
        row = {
            "routing": recipe.name if recipe else "dense", "bits_per_byte": statistics.fmean(values),
            "half_width": half,
            **{k: statistics.fmean(r[k] for r in runs) for k in runs[0] if k != "bits_per_byte"},
        }  # fmt: skip
        table.append(row)
        print(json.dumps(row), flush=True)
    return table


def arithmetic(n: int, seed: int = 0) -> Tensor:
    """n bytes or more of sums of numbers of up to three digits."""
    pairs = torch.randint(0, 1000, (n // 8, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.frombuffer(bytearray("".join(f"{a}+{b}={a + b}\n" for a, b in pairs).encode()), dtype=torch.uint8)


def mutual_information(experts: Tensor, domains: Tensor, n_experts: int, n_domains: int) -> float:
    """I(expert; domain) in nats, of pairs (M,).

    >>> round(mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), 2, 2), 4)
    0.6931
    """
    joint = torch.bincount(experts * n_domains + domains, minlength=n_experts * n_domains).double()
    p = joint.view(n_experts, n_domains) / joint.sum()
    outer = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return float(torch.where(p > 0, p * (p / outer.clamp_min(1e-300)).log(), 0.0).sum())


def specialisation(
    model: LanguageModel, domains: Sequence[Tensor], *, shuffles: int = 199, seed: int = 0
) -> dict[str, float]:
    """Does the expert tell the domain? I(expert; domain), and its p-value among shuffles of whole texts.

    Args:
        model: with routers.
        domains: held-out rows (n, T) of each domain, as many of each.
        shuffles: tokens of a text go together, so texts are shuffled, not tokens.
    """
    counts = read(model, torch.cat(list(domains)))[1].flatten(1).long()  # experts of different layers differ
    labels = torch.arange(len(domains)).repeat_interleave(len(domains[0]))
    text, expert = counts.nonzero(as_tuple=True)
    times, e = counts[text, expert], counts.shape[1]
    expert = expert.repeat_interleave(times)

    def information(labels: Tensor) -> float:
        return mutual_information(expert, labels[text].repeat_interleave(times), e, len(domains))

    found, generator = information(labels), torch.Generator().manual_seed(seed)
    null = [information(labels[torch.randperm(len(labels), generator=generator)]) for _ in range(shuffles)]
    p = (1 + sum(value >= found for value in null)) / (1 + shuffles)
    return {"information": found, "shuffled": statistics.fmean(null), "p": p}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("corpus", type=Path)
    ask.add_argument("--steps", type=int, default=400)
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--out", type=Path, help="write the table here, as JSON")
    a = ask.parse_args()
    text = bytes_of(a.corpus)
    cut = int(0.9 * len(text))
    table = ablation(text[:cut], rows(text[cut:], 256, 0), a.steps, a.seeds)
    print("\n| routing | bits per byte | load CV | max violation | dead | dropped |\n|---|---|---|---|---|---|")
    for r in table:
        load = [f"{r[k]:.2f}" if k in r else "" for k in ("expert_load_cv", "expert_max_violation", "dead_experts")]
        bits = f"{r['bits_per_byte']:.3f} ± {r['half_width']:.3f}"
        print(f"| {r['routing']} | {bits} | {' | '.join(load)} | {100 * r['dropped_tokens']:.1f} % |")
    if a.out:
        facts = {"corpus": a.corpus.name, "steps": a.steps, "seeds": a.seeds}
        a.out.write_text(json.dumps({**facts, "rows": table}, indent=1))


if __name__ == "__main__":
    main()
