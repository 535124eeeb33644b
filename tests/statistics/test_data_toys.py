"""Toys: the stated density integrates to 1, and the sampler draws from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from protea.data import TOYS, open_data
from protea.rng import Streams

# half side of a box that holds all but 1e-9 of the mass, and a step well below the narrowest feature
BOXES = {
    "eight-gaussians": (4.0, 0.04), "rings": (4.0, 0.016), "checkerboard": (3.0, 0.125), "two-moons": (3.0, 0.025),
    "pinwheel": (8.0, 0.02),
}  # fmt: skip
CELLS = 16


def masses(name):
    """Probability of CELLS x CELLS cells of the box, by the midpoint rule."""
    half, step = BOXES[name]
    n = round(2 * half / step)
    middle = -half + step * (torch.arange(n, dtype=torch.float64) + 0.5)
    log_p = torch.cat([TOYS[name].log_prob(torch.cartesian_prod(rows, middle)) for rows in middle.split(50)])
    p = (log_p.exp() * step**2).reshape(n, n).numpy()
    cell = np.minimum((np.arange(n) + 0.5) * CELLS / n, CELLS - 1).astype(int)
    out = np.zeros((CELLS, CELLS))
    np.add.at(out, (cell[:, None], cell[None, :]), p)
    return out, half, np.array([(cell == c).sum() for c in range(CELLS)]) * step


@pytest.mark.parametrize("name", sorted(TOYS))
def test_density_integrates_to_one_and_samples_follow_it(name, evidence):
    p, half, widths = masses(name)
    evidence(id="toys", system=f"toy {name}", claim="density integrates to 1", reference="midpoint rule",
             reached=abs(p.sum() - 1), tolerance=1e-6, unit="abs")  # fmt: skip
    n = 20_000
    x = TOYS[name].sample(Streams(11, n)).numpy()
    edges = np.concatenate(([-half], -half + np.cumsum(widths)))
    count, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=[edges, edges])
    expected = n * p.ravel()
    big = expected >= 8
    seen = np.append(count.ravel()[big], n - count.ravel()[big].sum())
    wanted = np.append(expected[big], n - expected[big].sum())
    if wanted[-1] < 1:  # nothing lies outside the large cells
        assert seen[-1] < 10
        seen, wanted = seen[:-1], wanted[:-1] * seen[:-1].sum() / wanted[:-1].sum()
    assert stats.chisquare(seen, wanted).pvalue > 1e-4


@pytest.mark.parametrize("name", sorted(TOYS))
def test_mean_log_density_is_minus_the_entropy(name):
    """Two independent roads to the entropy: an integral over the plane, and the mean over samples."""
    half, step = BOXES[name]
    middle = -half + step * (torch.arange(round(2 * half / step), dtype=torch.float64) + 0.5)
    total = 0.0
    for rows in middle.split(50):
        log_p = TOYS[name].log_prob(torch.cartesian_prod(rows, middle))
        total += float(torch.special.entr(log_p.exp()).sum() * step**2)
    log_p = TOYS[name].log_prob(TOYS[name].sample(Streams(3, 20_000)))
    assert abs(-log_p.mean().item() - total) < 5 * log_p.std().item() / 20_000**0.5 + 1e-3


def test_opened_toys_are_points_of_the_toy():
    d = open_data("checkerboard", n=500, seed=2)
    assert len(d.train) + len(d.validation) + len(d.holdout) == 500
    assert bool(torch.isfinite(TOYS["checkerboard"].log_prob(d.train.x)).all())
