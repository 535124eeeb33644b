r"""Two-sample tests: can generated rows be told from held-out real ones?

- `c2st`: the held-out accuracy of a classifier (Lopez-Paz and Oquab 2017): 1/2 is indistinguishable, 1 is plain
  to see. `c2st_p_value` is an exact test of "same distribution".
- `mmd`: the unbiased squared maximum mean discrepancy (Gretton et al. 2012) with the kernel
  exp(-|x - y|^2 / (2 h^2)), h the median distance of the *real* rows, so that every model meets the same kernel.
- `sliced_wasserstein`: the mean over fixed random directions of the one-dimensional W_2^2, square-rooted
  (Rabin et al. 2012).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from protea.evaluation.figure import (
    REPLICATES,
    Figure,
    describe,
    percentile_interval,
    recentred_interval,
    resample,
    resample_weights,
)
from protea.rng import Streams, fold, permutation

Classifier = Literal["trees", "forest", "linear"]


def one_thread() -> Any:
    """A context in which scikit-learn's loops do not fork threads: the jobs here are too small to gain from them."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def make_classifier(kind: Classifier, seed: int) -> Any:
    """ "trees": gradient boosting, for tables (takes NaN); "forest": extra trees, for features; "linear": logistic."""
    state = fold(seed, "classifier") % 2**31
    if kind == "trees":
        from sklearn.ensemble import HistGradientBoostingClassifier

        options: dict[str, Any] = {"max_iter": 60, "min_samples_leaf": 10, "early_stopping": False}
        return HistGradientBoostingClassifier(random_state=state, **options)
    if kind == "forest":
        from sklearn.ensemble import ExtraTreesClassifier

        return ExtraTreesClassifier(100, min_samples_leaf=2, random_state=state)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))


def c2st(
    real: Tensor, fake: Tensor, protocol: Mapping[str, Any] | None = None,
    *, classifier: Classifier = "forest", folds: int = 5, seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """Cross-validated accuracy of telling `fake` (m, F) from `real` (n, F), each side weighing one half.

    0.5 is the best. The interval is the bootstrap over rows of the held-out decisions.
    """
    with one_thread():
        correct_real, correct_fake = _held_out(real, fake, classifier, folds, seed)
    n, m = len(correct_real), len(correct_fake)
    value = float(correct_real.mean() + correct_fake.mean()) / 2
    found = (
        resample_weights(n, replicates, seed, "real") @ correct_real / n
        + resample_weights(m, replicates, seed, "fake") @ correct_fake / m
    ) / 2
    low, high = percentile_interval(found)
    facts = {"classifier": classifier, "folds": min(folds, n, m)}
    return Figure(value, low, high, describe(protocol, replicates, "percentile", **facts))


def c2st_p_value(real: Tensor, fake: Tensor, *, classifier: Classifier = "forest", seed: int = 0) -> float:
    """Exact p-value of "same distribution": train on one half, permute the labels of the other (Fisher's exact test).

    The classifier never saw the second half, so under the null its labels are exchangeable given its decisions.
    """
    from scipy.stats import hypergeom

    halves = [permutation(len(x), seed, "half", i) for i, x in enumerate((real, fake))]
    train = [x[p[: len(p) // 2]] for x, p in zip((real, fake), halves)]
    test = [x[p[len(p) // 2 :]] for x, p in zip((real, fake), halves)]
    with one_thread():
        fitted = make_classifier(classifier, seed).fit(*_labelled(*train))
        said_fake = [int((fitted.predict(x.numpy()) == 1).sum()) for x in test]
    n, m = len(test[0]), len(test[1])
    return float(hypergeom.sf(said_fake[1] - 1, n + m, m, sum(said_fake)))


def median_bandwidth(real: Tensor) -> float:
    """The median distance between distinct real rows (at most 1,000 of them)."""
    x = real[:1000].double()
    d = torch.pdist(x)
    d = d[d > 0]
    return float(d.median()) if len(d) else 1.0


def mmd(
    real: Tensor, fake: Tensor, protocol: Mapping[str, Any] | None = None,
    *, bandwidth: float | None = None, seed: int = 0, replicates: int = REPLICATES,
) -> Figure:  # fmt: skip
    """Unbiased squared MMD of (n, F) and (m, F); may come out below 0; lower is better."""
    h = median_bandwidth(real) if bandwidth is None else bandwidth
    x, y = real.double(), fake.double()
    kernels = [torch.exp(-torch.cdist(a, b).square() / (2 * h * h)) for a, b in ((x, x), (y, y), (x, y))]
    value, low, high = mmd_of_kernels(*kernels, seed=seed, replicates=replicates)
    facts = {"kernel": "RBF", "bandwidth": h}
    return Figure(value, low, high, describe(protocol, replicates, "recentred", **facts))


def mmd_of_kernels(
    k_xx: Tensor, k_yy: Tensor, k_xy: Tensor, *, seed: int, replicates: int
) -> tuple[float, float, float]:
    """Unbiased squared MMD from kernel matrices, with its interval; pairs of one row with itself never count."""
    k_xx, k_yy = k_xx.clone().fill_diagonal_(0), k_yy.clone().fill_diagonal_(0)

    def of(w: Tensor, v: Tensor) -> Tensor:
        def within(k: Tensor, c: Tensor) -> Tensor:  # draws of the same row are no pair
            return ((c @ k) * c).sum(1) / (c.sum(1).square() - c.square().sum(1)).clamp_min(1)

        across = ((w @ k_xy) * v).sum(1) / (w.sum(1) * v.sum(1))
        return within(k_xx, w) + within(k_yy, v) - 2 * across

    n, m = k_xy.shape
    value = float(of(torch.ones(1, n, dtype=torch.float64), torch.ones(1, m, dtype=torch.float64)))
    found = of(resample_weights(n, replicates, seed, "real"), resample_weights(m, replicates, seed, "fake"))
    low, high = recentred_interval(value, found)
    return value, low, high


def sliced_wasserstein(
    real: Tensor, fake: Tensor, protocol: Mapping[str, Any] | None = None,
    *, directions: int = 64, seed: int = 0, replicates: int = 100,
) -> Figure:  # fmt: skip
    """Sliced 2-Wasserstein distance of (n, F) and (m, F) over fixed directions; lower is better."""
    z = Streams(fold(0, "directions"), directions).normal(real.shape[1], dtype=torch.float64)
    theta = (z / z.norm(dim=1, keepdim=True)).mT
    x, y = ((a.double() @ theta).mT.float().numpy() for a in (real, fake))  # (L, n), (L, m)
    value = _sliced(x, y)
    i, j = (resample(a.shape[1], replicates, seed, side).numpy() for a, side in ((x, "real"), (y, "fake")))
    found = torch.tensor([_sliced(x[:, i[b]], y[:, j[b]]) for b in range(replicates)], dtype=torch.float64)
    low, high = recentred_interval(value, found, floor=0.0)
    return Figure(value, low, high, describe(protocol, replicates, "recentred", directions=directions))


def _sliced(x: np.ndarray, y: np.ndarray) -> float:
    """Root mean over rows of the squared distance between quantile functions of x (L, n) and y (L, m)."""
    x, y = np.sort(x, 1), np.sort(y, 1)
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return math.sqrt(float(np.mean((x - y) ** 2, dtype=np.float64)))
    edges = np.unique(
        np.concatenate((np.arange(n + 1) / n, np.arange(m + 1) / m)).round(12)
    )  # both are constant between
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    d = x[:, (middle * n).astype(int)] - y[:, (middle * m).astype(int)]
    return math.sqrt(float((d.astype(np.float64) ** 2 @ width).mean()))


def _labelled(real: Tensor, fake: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return torch.cat((real, fake)).numpy(), np.repeat([0, 1], [len(real), len(fake)])


def _held_out(real: Tensor, fake: Tensor, kind: Classifier, folds: int, seed: int) -> tuple[Tensor, Tensor]:
    """Held-out decisions: 1.0 where right, (n,) and (m,)."""
    folds = max(2, min(folds, len(real), len(fake)))
    fold_of = [torch.empty(len(x), dtype=torch.long) for x in (real, fake)]
    for i, (x, f) in enumerate(zip((real, fake), fold_of)):
        f[permutation(len(x), seed, "fold", i)] = torch.arange(len(x)) % folds
    correct = [torch.zeros(len(x), dtype=torch.float64) for x in (real, fake)]
    for k in range(folds):
        train = [x[f != k] for x, f in zip((real, fake), fold_of)]
        fitted = make_classifier(kind, seed).fit(*_labelled(*train))
        for label, (x, f) in enumerate(zip((real, fake), fold_of)):
            here = f == k
            correct[label][here] = torch.from_numpy(fitted.predict(x[here].numpy()) == label).double()
    return correct[0], correct[1]
