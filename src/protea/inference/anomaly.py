r"""Anomaly scores with calibrated p-values (conformal prediction), and control of false discoveries.

A row's score s is its log-likelihood: low is strange. Against the scores s_1 .. s_n of held-out normal rows that the
model did not learn from,

    p = (1 + #{i : s_i <= s}) / (n + 1)

(Vovk, Gammerman & Shafer 2005, "Algorithmic learning in a random world"). If the row is exchangeable with the held-out
ones, P(p <= a) <= a for every a, for every n, whatever the model: a bad model costs power, never validity. Ties count
against the row, which is conservative; with `rng` they are broken at random,

    p = (#{s_i < s} + U (1 + #{s_i = s})) / (n + 1),  U uniform on (0, 1),

and p is exactly uniform. The least p-value is 1 / (n + 1).

Of many rows, those with Benjamini-Hochberg adjusted q <= alpha hold at most a share alpha of normal rows, in
expectation (Benjamini & Hochberg 1995); conformal p-values of one calibration set are positively dependent, so that it
holds for them (Bates, Candes, Lei, Romano & Sesia 2023, "Testing for outliers with conformal p-values").

Likelihood is not typicality: a density can be higher on simple data from elsewhere than on its own (Nalisnick et al.
2019, "Do deep generative models know what they don't know?"). Such rows get p near 1. The statistic "typicality",
s = -|log p(x) - mean of log p over training rows| (Nalisnick et al. 2019, "Detecting out-of-distribution inputs to
deep generative models using typicality"), finds both sides, at half the power on each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protea.errors import ConfigError, DataError
from protea.rng import Streams

Statistic = Literal["likelihood", "typicality"]
FEWEST = 20  # calibration rows: with less, no p-value can be below 0.05


class Anomalies(NamedTuple):
    """How strange each row is.

    Args:
        nats: (B,) log p(x), or a bound of it; of rows with holes, of what is observed.
        p: (B,) conformal p-values: small is strange.
        q: (B,) Benjamini-Hochberg adjusted p-values.
        calibration: number of held-out rows behind them.
        statistic: "likelihood" or "typicality".
    """

    nats: Tensor
    p: Tensor
    q: Tensor
    calibration: int
    statistic: Statistic


def conformal_p(scores: Tensor, calibration: Tensor, rng: Streams | None = None) -> Tensor:
    """p-values (B,) of scores (B,) against those of n held-out rows (n,); low scores are strange.

    Args:
        scores: of the rows in question; NaN is refused, -inf is the strangest score there is.
        calibration: of rows the model has not learnt from.
        rng: one stream for each row breaks ties at random (exactly uniform); None counts them against the row.

    Raises:
        DataError: no calibration rows, or scores that are NaN.

    >>> conformal_p(torch.tensor([-9.0, 0.5, 2.0]), torch.arange(4.0)).tolist()
    [0.2, 0.4, 0.8]
    """
    if len(calibration) == 0 or bool(scores.isnan().any()) or bool(calibration.isnan().any()):
        raise DataError(
            f"{len(calibration)} calibration scores, or NaN among the scores.", "Give finite held-out scores."
        )
    ordered, n = calibration.double().sort().values, len(calibration)
    upto = torch.searchsorted(ordered, scores.double(), right=True).double()
    if rng is None:
        return (1 + upto) / (n + 1)
    below = torch.searchsorted(ordered, scores.double(), right=False).double()
    u = rng.uniform(1, dtype=torch.float64)[:, 0]
    return (below + u * (1 + upto - below)) / (n + 1)


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Adjusted p-values q_(i) = min_{j >= i} m p_(j) / j, (m,): rejecting q <= alpha controls the false discovery rate.

    >>> benjamini_hochberg(torch.tensor([0.01, 0.5, 0.02])).tolist()
    [0.029999999329447746, 0.5, 0.029999999329447746]
    """
    m = len(p)
    order = p.argsort(descending=True)
    scaled = p[order] * m / torch.arange(m, 0, -1, dtype=p.dtype)
    q = torch.empty_like(p)
    q[order] = scaled.cummin(0).values.clamp(max=1.0) if m else scaled
    return q


def judge_anomalies(
    nats: Tensor, calibration: Tensor, *, statistic: Statistic = "likelihood", training: Tensor | None = None,
    rng: Streams | None = None,
) -> Anomalies:  # fmt: skip
    """p-values and q-values of log-likelihoods (B,) against those of held-out rows (n,).

    Args:
        statistic: what is strange; "typicality" needs `training`.
        training: log-likelihoods of training rows, whose mean is typical; not of held-out rows, which must stay
            exchangeable with the rows in question.
        rng: breaks ties at random.

    Raises:
        ConfigError: no such statistic. DataError: fewer than 20 held-out rows.
    """
    if statistic not in ("likelihood", "typicality") or (statistic == "typicality" and training is None):
        raise ConfigError(
            f"There is no statistic {statistic!r}, or it lacks training rows.", "likelihood or typicality."
        )
    if len(calibration) < FEWEST:
        raise DataError(
            f"{len(calibration)} held-out rows cannot calibrate p-values: the least would be 1/{len(calibration) + 1}.",
            f"Give {FEWEST} or more.",
        )
    score, held = nats, calibration
    if statistic == "typicality" and training is not None:
        usual = training[training.isfinite()].mean()
        score, held = -(nats - usual).abs(), -(calibration - usual).abs()
    p = conformal_p(score, held, rng)
    return Anomalies(nats, p, benjamini_hochberg(p), len(calibration), statistic)
