"""Boltzmann machines on 10,000 binarised digits (28 x 28, threshold 127): 9,000 rows teach, the last 1,000 test.

    python benchmarks/mnist_boltzmann.py --data DIGITS.npz --figures docs/images     # about 15 minutes of one core

An RBM of 500 hidden units by PCD-1 and by CD-1, and a deep machine of 500 and 250 by PCD-1: test
log-likelihood by annealed importance sampling from both sides (100 chains each), completion of the lower half of each
test digit, and the pictures of the documentation. `--epochs` and `--steps` make it shorter.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protea.models.boltzmann.boltzmann import Boltzmann, Clamped
from protea.models.boltzmann.dbm import DBM
from protea.models.boltzmann.rbm import RBM
from protea.models.boltzmann.units import Binomial
from protea.objectives.contrastive_divergence import DataChains, Negative, PersistentChains
from protea.rng import Streams, fold
from protea.samplers.ais import ais, evened, spacing
from protea.samplers.sandwich import combined
from protea.space import Rows
from protea.training.batches import Batches
from protea.training.contrast import Contrast

SIDE, TRAIN = 28, 9_000


def learn(model: Boltzmann, negative: Negative, rows: Rows, epochs: int, rate: float = 0.05) -> float:
    """Seconds it took; the model holds its averaged weights."""
    model.initialise(rows)
    learner, batches = Contrast(model, negative, rate=rate), Batches(rows, 100, 0)
    learner.horizon = batches.per_epoch * epochs
    start = time.perf_counter()
    for step in range(learner.horizon):
        learner.step(batches(step))
    if learner.ema:
        learner.ema.exchange()
    return time.perf_counter() - start


@torch.no_grad()
def judged(model: Boltzmann, test: Tensor, steps: int) -> dict[str, float]:
    """Test log-likelihood in nats, its standard errors, and the constant."""
    log_f = torch.cat([model.unnormalised(x, rng=Streams(0, len(x))).double() for x in test.split(250)])
    z = model.machine.estimate(0, chains=100, steps=steps, particles=model.particles)  # type: ignore[attr-defined]
    return {"nats": float(log_f.mean()) - z.value, "rows_error": float(log_f.std()) / len(log_f) ** 0.5,
            "log_z": z.value, "log_z_error": z.error, "effective": z.effective,
            "lower": z.lower, "upper": z.upper, "temperatures": z.steps, "converged": z.converged}  # fmt: skip


def halves(model: Boltzmann, rows: Rows, test: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Share of wrong pixels in the lower half, completed by each way; two completions of the first rows."""
    seen = torch.zeros_like(test, dtype=torch.bool)
    seen[..., : SIDE // 2, :] = True
    clamped = model.given(test, seen)
    assert isinstance(clamped, Clamped)
    guess = clamped.mean(50) > 0.5
    below = ~seen
    mean = (rows.x.double().mean(0) > 0.5).expand_as(test)
    upper = rows.x[..., : SIDE // 2, :].flatten(1).float()
    nearest = torch.cat(
        [torch.cdist(t[..., : SIDE // 2, :].flatten(1).float(), upper).argmin(1) for t in test.split(250)]
    )

    def wrong(x: Tensor) -> float:
        return float((x.bool() != test.bool())[below].double().mean())

    figures = {"machine": wrong(guess), "mean image": wrong(mean), "nearest neighbour": wrong(rows.x[nearest])}
    return figures, guess[:12], model.given(test[:12], seen[:12]).sample(12)


def grid(pictures: Tensor, columns: int) -> np.ndarray:
    """(N, 28, 28) on [0, 1] to one picture of uint8 with borders of one pixel."""
    n = len(pictures) // columns * columns
    tiles = torch.nn.functional.pad(
        pictures[:n].reshape(-1, columns, *pictures.shape[1:]).float(), (1, 0, 1, 0), value=0.5
    )
    return (tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1).clamp(0, 1) * 255).to(torch.uint8).numpy()


def save(path: Path, picture: np.ndarray, zoom: int = 2) -> None:
    from PIL import Image

    Image.fromarray(np.kron(picture, np.ones((zoom, zoom), dtype=np.uint8))).save(path, optimize=True)


def constant_chart(model: RBM, path: Path, ladder: list[int]) -> list[dict[str, float]]:
    """log Z against the length of the path, from either side and from both, and the weights at the longest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found, machine = [], model.machine
    betas = spacing(ladder[0])
    for steps in ladder:
        streams = [Streams(fold(0, side, steps), 100) for side in ("forward", "backward")]
        forward = ais(machine.blank(streams[0]), betas, machine.annealing(streams[0]))[0]
        warm = machine.settled(model.particles, streams[1])
        backward = ais(warm, betas[::-1], machine.annealing(streams[1]))[0]
        value, error, effective = combined(forward.log_w, -backward.log_w)
        base, length = machine.log_base(), len(betas) - 1
        found.append({"steps": length, "log_z": base + value, "error": error, "effective": effective,
                      "lower": base + forward.log_ratio, "upper": base - backward.log_ratio})  # fmt: skip
        betas, weights = evened(betas, forward.spread, 2 * steps), (base + forward.log_w, base - backward.log_w)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
    at = [f["steps"] for f in found]
    left.plot(at, [f["upper"] for f in found], "v:", ms=4, label="backward alone")
    left.errorbar(at, [f["log_z"] for f in found], [1.96 * f["error"] for f in found], fmt="ko-", ms=3, label="both")
    left.plot(at, [f["lower"] for f in found], "^:", ms=4, label="forward alone")
    left.set(xscale="log", xlabel="temperatures", ylabel="log Z, nats", title="estimate and 95 % interval")
    left.set_xticks(at, [f"{n:,}" for n in at], fontsize=7)
    left.minorticks_off()
    left.legend(fontsize=7)
    for w, label in zip(weights, ("forward", "backward")):
        right.hist(w.numpy(), 25, alpha=0.6, label=label)
    right.set(xlabel="log weight of a chain", title=f"{ladder[-1]:,} temperatures")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    x = torch.from_numpy((np.load(options.data)["x"] > 127).astype(np.uint8))
    rows, test = Rows(x[:TRAIN], None, torch.arange(TRAIN)), x[TRAIN:]
    event = (SIDE, SIDE)
    found = {}
    for name, model, negative in (
        ("rbm, PCD-1", RBM(event, Binomial(784, 500), dtype=torch.uint8), PersistentChains(100)),
        ("rbm, CD-1", RBM(event, Binomial(784, 500), dtype=torch.uint8), DataChains(1)),
        ("dbm, PCD-1", DBM(event, Binomial(784, 500), 250, dtype=torch.uint8), PersistentChains(100)),
    ):
        seconds = learn(model, negative, rows, options.epochs)
        found[name] = {"epochs": options.epochs, "seconds": seconds, **judged(model, test, options.steps)}
        if name != "rbm, CD-1":
            found[name]["completion"], guess, drawn = halves(model, rows, test)
            short = name.split(",")[0]
            if options.figures:
                save(options.figures / f"{short}-samples.png", grid(model.sample(36), 12))
                seen = test[:12].clone()
                seen[:, SIDE // 2 :] = 0
                save(options.figures / f"{short}-completions.png", grid(torch.cat((seen, drawn, guess, test[:12])), 12))
        if name == "rbm, PCD-1" and options.figures and isinstance(model, RBM):
            w = model.visible.weight.detach().T[:48].reshape(-1, SIDE, SIDE)
            save(options.figures / "rbm-filters.png", grid(0.5 + w / (4 * w.std()), 12))
            ladder = [s for s in (125, 250, 500, 1000, 2000) if s <= options.steps]
            found[name]["path"] = constant_chart(model, options.figures / "rbm-ais.png", ladder)
        print(name, json.dumps(found[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
