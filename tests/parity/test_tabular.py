"""Table figures agree with scipy and scikit-learn, column by column and pair by pair."""

import numpy as np
import pytest
import torch

from protea.evaluation.tabular import association_error, column_error, usefulness
from protea.space import Field

FIELDS = [Field("x", "real"), Field("y", "grid"), Field("c", "category", levels=3), Field("d", "category", levels=4)]


def _rows(n, seed, tie=0.7, missing=0.0):
    g = np.random.default_rng(seed)
    x = g.normal(size=n)
    y = np.round(3 * (tie * x + g.normal(size=n)))
    c = np.digitize(tie * x + g.normal(size=n), [-1, 1])
    d = np.where(g.random(n) < tie, c, g.integers(0, 4, n))
    rows = np.stack((x, y, c, d), 1).astype(float)
    rows[g.random(n) < missing, 0] = np.nan
    rows[g.random(n) < missing, 2] = np.nan
    return torch.from_numpy(rows)


def test_column_distances_agree_with_scipy(evidence):
    from scipy.stats import ks_2samp

    a, b = _rows(300, 0), _rows(200, 1, tie=0.2)
    _, columns = column_error(a, b, FIELDS, replicates=2)
    expected = {n: ks_2samp(a[:, i].numpy(), b[:, i].numpy()).statistic for i, n in enumerate("xy")}
    for i, n in ((2, "c"), (3, "d")):
        p, q = (np.bincount(r[:, i].numpy().astype(int), minlength=4) / len(r) for r in (a, b))
        expected[n] = np.abs(p - q).sum() / 2
    error = max(abs(columns[n] - expected[n]) for n in expected)
    evidence(
        id="EV-16", system="Column error", claim="KS distance and total variation", reference="scipy ks_2samp",
        reached=error, tolerance=1e-12, unit="max abs",
    )  # fmt: skip


def test_missing_rate_is_part_of_the_column_error():
    a, b = _rows(2000, 0, missing=0.0), _rows(2000, 0, missing=0.3)
    _, columns = column_error(a, b, FIELDS, replicates=2)
    rate = b[:, 0].isnan().double().mean().item()
    assert columns["x"] >= rate - 0.03 and columns["c"] >= b[:, 2].isnan().double().mean().item() - 1e-9
    figure, same = column_error(b, b.flip(0), FIELDS)
    assert figure.value == pytest.approx(0, abs=1e-12) and max(same.values()) < 1e-12


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (2, 3)])
def test_associations_agree_with_scipy(evidence, pair):
    from scipy.stats import rankdata, spearmanr
    from scipy.stats.contingency import association

    def expected(r):
        u, v = r[:, pair[0]].numpy(), r[:, pair[1]].numpy()
        if pair == (0, 1):
            return spearmanr(u, v).statistic
        if pair == (2, 3):
            return association(np.histogram2d(u, v, bins=(3, 4))[0].astype(int), method="cramer")
        rank = rankdata(u)
        groups = [rank[v == k] for k in np.unique(v)]
        return np.sqrt(sum(len(k) * (k.mean() - rank.mean()) ** 2 for k in groups) / ((rank - rank.mean()) ** 2).sum())

    a, b = _rows(400, 0), _rows(300, 1, tie=0.3)
    fields = [FIELDS[i] for i in pair]
    found = association_error(a[:, list(pair)], b[:, list(pair)], fields, replicates=2).value
    evidence(
        id="EV-16", system="Association error", claim=f"columns {pair}: Spearman, correlation ratio, Cramér's V",
        reference="scipy.stats", reached=abs(found - abs(expected(a) - expected(b))), tolerance=1e-10, unit="abs",
    )  # fmt: skip


def test_opposite_correlations_differ():
    a = _rows(500, 0)
    b = a.clone()
    b[:, 0] = -b[:, 0]
    assert association_error(a[:, :2], b[:, :2], FIELDS[:2], replicates=2).value > 0.9


def test_broken_associations_are_seen_through_missing_values():
    a, b = _rows(800, 0, missing=0.2), _rows(800, 1, missing=0.2)
    shuffled = torch.stack([b[torch.randperm(800), c] for c in range(4)], 1)
    good, bad = (association_error(a, x, FIELDS) for x in (b, shuffled))
    assert good.high < bad.low


def test_usefulness_agrees_with_scikit_learn():
    from sklearn.metrics import r2_score, roc_auc_score

    train, test = _rows(300, 0), _rows(200, 1)
    binary = [*FIELDS[:2], Field("c", "category", levels=2)]
    for rows in (train, test):
        rows[:, 2] = (rows[:, 2] > 0).double()
    figures = usefulness(train[:, :3], test[:, :3], 2, binary, replicates=20)
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    options = {"max_iter": 100, "early_stopping": False}
    model = HistGradientBoostingClassifier(**options).fit(train[:, :2], train[:, 2])
    assert figures["accuracy"].value == pytest.approx(model.score(test[:, :2], test[:, 2]))
    assert figures["auc"].value == pytest.approx(roc_auc_score(test[:, 2], model.predict_proba(test[:, :2])[:, 1]))
    figure = usefulness(train[:, :2], test[:, :2], 1, FIELDS[:2], replicates=20)["r2"]
    said = HistGradientBoostingRegressor(**options).fit(train[:, :1], train[:, 1]).predict(test[:, :1])
    assert figure.value == pytest.approx(r2_score(test[:, 1], said))
    assert figure.low < figure.value < figure.high


def test_constant_target_scores_the_constant():
    train, test = _rows(50, 0), _rows(80, 1)
    train[:, 2] = 1.0
    figure = usefulness(train, test, 2, FIELDS, replicates=2)["accuracy"]
    assert figure.value == pytest.approx(float((test[:, 2] == 1).double().mean()))
