"""Each metric moves the right way under planted corruptions, and intervals cover what they claim."""

import pytest
import torch

from protea.evaluation.coverage import prdc
from protea.evaluation.diversity import duplicates, modes_covered, vendi
from protea.evaluation.figure import mean_figure
from protea.evaluation.frechet import frechet, kernel_distance
from protea.evaluation.two_sample import c2st, median_bandwidth, mmd, sliced_wasserstein
from protea.rng import Streams, permutation

MODES = 8


def _mixture(n, seed, modes=MODES):
    """Eight Gaussians on a circle in the plane, with four coordinates that are only noise."""
    rng = Streams(seed, n)
    k = rng.categorical(torch.zeros(n, modes))
    angle = k * (2 * torch.pi / MODES)
    x = 0.25 * rng.normal(6, dtype=torch.float64)
    x[:, 0] += 2 * angle.cos()
    x[:, 1] += 2 * angle.sin()
    return x, k


@pytest.fixture(scope="module")
def figures():
    n, (real, k) = 500, _mixture(500, 1)
    good, kg = _mixture(n, 2)
    cases = {
        "good": (good, kg),
        "noise": (good + 0.8 * Streams(3, n).normal(6, dtype=torch.float64), kg),
        "shrunk": (good * 0.7, kg),
        "dropped": _mixture(n, 4, modes=4),
        "repeated": (good[torch.arange(n) % 25], kg[torch.arange(n) % 25]),
    }
    found = {}
    for name, (fake, kf) in cases.items():
        options = {"replicates": 100}
        found[name] = {
            "c2st_accuracy": c2st(real, fake, classifier="trees", **options), "mmd": mmd(real, fake, **options),
            "sliced_wasserstein": sliced_wasserstein(real, fake, **options), "frechet": frechet(real, fake, **options),
            "kernel_distance": kernel_distance(real, fake, **options),
            "vendi": vendi(fake, bandwidth=median_bandwidth(real)),
            "duplicates": duplicates(fake, **options), **prdc(real, fake, **options),
        }  # fmt: skip
        found[name]["modes"] = modes_covered(k, kf, MODES)
    return found


WORSE = [  # (metric, corruption, sign of the change)
    *[(m, c, +1) for m in ("c2st_accuracy", "mmd", "sliced_wasserstein") for c in ("noise", "shrunk", "dropped")],
    *[("frechet", c, +1) for c in ("noise", "shrunk", "dropped")],
    ("kernel_distance", "dropped", +1), ("c2st_accuracy", "repeated", +1),
    ("precision", "noise", -1), ("density", "noise", -1), ("coverage", "noise", -1),
    ("recall", "dropped", -1), ("coverage", "dropped", -1), ("recall", "repeated", -1), ("coverage", "repeated", -1),
    ("vendi", "dropped", -1), ("vendi", "repeated", -1), ("duplicates", "repeated", +1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "corruption", "sign"), WORSE)
def test_moves_the_right_way(figures, metric, corruption, sign):
    good, bad = figures["good"][metric], figures[corruption][metric]
    assert sign * (bad.value - good.value) > 0
    assert (bad.low > good.high) if sign > 0 else (bad.high < good.low), f"{good} against {bad}"


@pytest.mark.slow
def test_good_samples_look_good(figures, evidence):
    good = figures["good"]
    assert good["c2st_accuracy"].low <= 0.5 <= good["c2st_accuracy"].high + 0.03
    assert good["mmd"].low <= 0 <= good["mmd"].high
    assert good["precision"].value > 0.9 and good["recall"].value > 0.9 and good["coverage"].value > 0.9
    assert figures["good"]["modes"] == (8, 8) and figures["dropped"]["modes"] == (4, 8)
    evidence(
        id="EV-06", system="Recall", claim="half of the modes dropped: recall about 0.5 (deviation)",
        reference="planted drop", reached=abs(figures["dropped"]["recall"].value - 0.5), tolerance=0.08, unit="abs",
    )  # fmt: skip
    evidence(
        id="EV-06", system="Precision", claim="half of the modes dropped: precision stays", reference="planted drop",
        reached=figures["dropped"]["precision"].value, tolerance=0.9, unit="share", at_least=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["mean", "mmd"])
def test_intervals_cover(statistic, evidence):
    """95 % intervals of the mean, and of the squared MMD between shifted Gaussians, hold the truth."""
    rounds, hits = 200, 0
    for seed in range(rounds):
        x = Streams(seed + 1000, 100).normal(2, dtype=torch.float64)
        if statistic == "mean":
            f, truth = mean_figure(x[:, 0].exp(), seed=seed), float(torch.tensor(0.5).exp())
        else:  # E k(x, y) of N(0, I) and N(mu, I) in the plane with bandwidth 1: (1/3) exp(-|mu|^2 / 6)
            y = Streams(seed + 5000, 100).normal(2, dtype=torch.float64) + 1.0
            f = mmd(x, y, bandwidth=1.0, seed=seed)
            truth = 2 / 3 * (1 - float(torch.tensor(-2 / 6).exp()))
        hits += f.low <= truth <= f.high
    evidence(
        id="EV-17", system="Bootstrap intervals", claim=f"coverage of 95 % intervals ({statistic}), 200 simulations",
        reference="closed form", reached=hits / rounds, tolerance=0.88, unit="share", at_least=True,
    )  # fmt: skip


def test_unbiased_mmd_averages_to_zero():
    values = [
        mmd(Streams(s, 40).normal(3, dtype=torch.float64), Streams(s + 999, 40).normal(3, dtype=torch.float64),
            bandwidth=1.5, replicates=2).value
        for s in range(100)
    ]  # fmt: skip
    v = torch.tensor(values)
    assert abs(float(v.mean())) < 3.5 * float(v.std()) / 10


def test_a_permutation_of_the_real_rows_is_perfect():
    x, _ = _mixture(200, 9)
    y = x[permutation(200, 0)]
    found = prdc(x, y, replicates=10)
    assert all(found[m].value == 1.0 for m in ("precision", "recall", "coverage"))
    assert sliced_wasserstein(x, y, replicates=10).value < 1e-6
