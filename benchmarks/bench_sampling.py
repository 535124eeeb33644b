"""What an answer costs: a class for a row, or a sample, by family; milliseconds and network evaluations, on digits.

A classifier looks once. A sampler looks once (GAN, flow), once for each step (diffusion) or once for each pixel
(autoregressive). An evaluation is one pass of one row through the network; rows passed are counted by a hook while the
same work runs, and divided by the samples. Bayes' rule looks at a row once for each class and each draw of a bound.

Models of a two-minute budget's size, hardly trained: what they cost does not depend on what they have learnt. "alone"
is one sample at a time (latency), "in 64s" a batch of 64 (throughput); every figure is the median over rounds in which
all take their turn, so that the machine's drift falls on all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import save, seconds
from torch import nn

from protea.data import open_data
from protea.inference.contenders import Discriminative
from protea.inference.posterior import posterior
from protea.models import MODELS
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Tokens
from protea.training import Budget, fit

BATCH, ROUNDS, DRAWS = 64, 5, 8


@dataclass
class Case:
    """Work for n rows or samples, and the network whose rows are counted; or the number, where there is no network."""

    name: str
    what: str
    work: Callable[[int], object]
    network: nn.Module | int


def looks(case: Case, n: int) -> float:
    """Rows that pass through the network for each of n samples."""
    if isinstance(case.network, int):
        return case.network
    passed = 0

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal passed
        passed += len(args[0])

    hook = case.network.register_forward_pre_hook(count)
    case.work(n)
    hook.remove()
    return passed / n


def cases() -> list[Case]:
    """Classifiers, then samplers, from the cheapest kind to the dearest."""
    digits = open_data("digits")
    space, train, test = digits.space, digits.train, digits.holdout.x[:BATCH]
    linear = Discriminative(1.0).learn(space, train)

    def learnt(entry: str, **changes: Any) -> Any:
        config = replace(MODELS[entry].suggest(space, train, 120.0), **changes)
        model = MODELS[entry].build(space, config)
        model.initialise(train, 0)
        fit(model, train, budget=Budget(epochs=1), judge=None, progress=None)
        return model.eval()

    def sampler(model: Any) -> Callable[[int], object]:
        return lambda n: model.draw(Streams(0, n))

    gmm, gan, flow = learnt("gmm"), learnt("wgan"), learnt("flow")
    ddpm, ddim = learnt("diffusion", sampler="ancestral", steps=1000), learnt("diffusion", sampler="ddim", steps=50)
    first = next(m for m in flow.inner.bijection.modules() if isinstance(m, nn.Linear))
    tokens = Tokens(64, vocabulary=17, tokenizer="ids")
    pixels = Rows(train.x.flatten(1).long(), None, train.ids)
    writer: Any = MODELS["transformer"].build(tokens, MODELS["transformer"].suggest(tokens, pixels, 120.0))
    writer.initialise(pixels, 0)
    fit(writer, pixels, budget=Budget(epochs=1), judge=None, progress=None)
    return [
        Case("logistic regression", "classify", lambda n: linear.log_posterior(test[:n]), 1),
        Case(
            "Gaussian mixture, Bayes' rule",
            "classify",
            lambda n: posterior(gmm, test[:n], draws=DRAWS),
            len(space.classes) * DRAWS,
        ),
        Case("WGAN", "sample", sampler(gan), gan.inner.generator),
        Case("spline flow", "sample", sampler(flow), first),
        Case("diffusion, DDIM, 50 steps", "sample", sampler(ddim), ddim.inner.network),
        Case("transformer, 64 pixels", "sample", sampler(writer.eval()), writer.net),
        Case("diffusion, DDPM, 1,000 steps", "sample", sampler(ddpm), ddpm.inner.network),
    ]


@torch.no_grad()
def main() -> None:
    with torch.enable_grad():
        every = cases()
    found: dict[str, dict[int, list[float]]] = {c.name: {1: [], BATCH: []} for c in every}
    for case in every:  # warm-up
        case.work(1)
        case.work(BATCH)
    for _ in range(ROUNDS):
        for case in every:
            for n in (1, BATCH):
                found[case.name][n].append(1e3 * seconds(lambda c=case, n=n: c.work(n)) / n)
    rows = []
    print(f"{'':32} {'':9} {'ms alone':>10} {'ms in 64s':>10} {'evaluations':>12}")
    for case in every:
        alone, many = (statistics.median(found[case.name][n]) for n in (1, BATCH))
        row = {"name": case.name, "what": case.what, "ms_alone": alone, "ms_in_batch": many, "batch": BATCH,
               "evaluations": looks(case, BATCH), "rounds": ROUNDS}  # fmt: skip
        print(f"{case.name:32} {case.what:9} {alone:10.3f} {many:10.4f} {row['evaluations']:12.1f}", flush=True)
        rows.append(row)
    save("sampling", rows)


if __name__ == "__main__":
    main()
