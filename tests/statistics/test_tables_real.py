"""Adult and the telephone customers: held-out nats per row, the classifier beside scikit-learn's, exact completion."""

from __future__ import annotations

import math
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import CategoricalNB, GaussianNB
from sklearn.preprocessing import KBinsDiscretizer

from protea.data import open_data
from protea.data.dataset import Dataset
from protea.models import MODELS
from protea.models.classical.naive_bayes import NaiveBayes
from protea.models.classical.table_mixture import MixtureConfig
from protea.training.budget import Budget
from protea.training.fit import fit

TABLES = {"adult": "income", "telco_churn": "Churn"}
pytestmark = pytest.mark.slow


@cache
def table(folder: Path, name: str) -> Dataset:
    return open_data(str(folder / "tabular" / f"{name}.csv"), target=TABLES[name])


def learnt(entry: str, data: Dataset, config: Any = None, epochs: int = 60) -> tuple[Any, float]:
    """A model after EM, and its seconds."""
    config = config or MODELS[entry].suggest(data.space, data.train, 20.0)
    model, tick = MODELS[entry].build(data.space, config), time.perf_counter()
    model.initialise(data.train)
    fit(model, data.train, None, budget=Budget(epochs=epochs), judge=None, progress=None)
    return model.eval(), time.perf_counter() - tick


def nats(model: Any, data: Dataset) -> float:
    with torch.no_grad():
        return -float(model.log_prob(data.holdout.x).mean())


def peers(data: Dataset) -> dict[str, np.ndarray]:
    """Scores of held-out rows from scikit-learn's naive Bayes: numbers as Gaussians, or cut into 20 quantiles."""
    fields, target = data.space.fields, data.space.target_index  # type: ignore[attr-defined]
    train, test = data.train.x.numpy(), data.holdout.x.numpy()
    y = train[:, target].astype(int)
    codes = [i for i, f in enumerate(fields) if f.kind == "category" and i != target]
    numbers = [i for i, f in enumerate(fields) if f.kind != "category"]

    def coded(x: np.ndarray) -> np.ndarray:
        return np.stack([np.where(np.isnan(x[:, i]), fields[i].levels, x[:, i]) for i in codes], 1).astype(int)

    def filled(x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x[:, numbers]), np.nanmedian(train[:, numbers], 0), x[:, numbers])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repeated quantiles are one
        cut = KBinsDiscretizer(20, encode="ordinal", strategy="quantile").fit(filled(train))
    whole = [np.hstack((coded(x), np.asarray(cut.transform(filled(x))).astype(int))) for x in (train, test)]
    sizes = [fields[i].levels + 1 for i in codes] + [int(n) for n in cut.n_bins_]
    plain = [np.concatenate((coded(x), filled(x)), 1) for x in (train, test)]
    return {
        "CategoricalNB, 20 quantiles": CategoricalNB(min_categories=sizes)
        .fit(whole[0], y)
        .predict_proba(whole[1])[:, 1],
        "GaussianNB": GaussianNB().fit(plain[0], y).predict_proba(plain[1])[:, 1],
    }


@pytest.mark.parametrize(("name", "least"), [("adult", 0.89), ("telco_churn", 0.81)])
def test_naive_bayes_beside_scikit_learns(shared_data: Path, name: str, least: float, evidence):
    data = table(shared_data, name)
    model, seconds = learnt("naive-bayes", data)
    assert isinstance(model, NaiveBayes)
    y = data.holdout.x[:, model.target].numpy()
    with torch.no_grad():
        log_p = model.log_posterior(data.holdout.x)
    area = float(roc_auc_score(y, (log_p[:, 1] - log_p[:, 0]).numpy()))
    accuracy = float((log_p.argmax(1).numpy() == y).mean())
    other = {who: float(roc_auc_score(y, score)) for who, score in peers(data).items()}
    said = ", ".join(f"{who} {value:.3f}" for who, value in other.items())
    print(f"{name}: AUC {area:.4f} ({said}); accuracy {accuracy:.4f}; {nats(model, data):.3f} nats; {seconds:.2f} s")
    evidence(id="TR-03", system="Naive Bayes (mixed columns)", claim=f"{name}: AUC of held-out rows", at_least=True,
             reference=f"scikit-learn: {said}", reached=area, tolerance=least, unit="AUC")  # fmt: skip
    evidence(id="TR-03", system="Naive Bayes (mixed columns)", claim=f"{name}: AUC above scikit-learn's best pipeline",
             reference=said, reached=area - max(other.values()), tolerance=-0.005, unit="AUC",
             at_least=True)  # fmt: skip


@pytest.mark.parametrize(("name", "strength", "most"), [("adult", 20.0, 30.4), ("telco_churn", 5.0, 33.4)])
def test_the_mixture_of_columns_beats_independence(
    shared_data: Path, name: str, strength: float, most: float, evidence
):
    data = table(shared_data, name)
    floor, _ = learnt("marginals", data, epochs=2)
    model, seconds = learnt("mixture", data, MixtureConfig(k=32, bins=64, strength=strength), epochs=40)
    reached, alone = nats(model, data), nats(floor, data)
    print(f"{name}: mixture {reached:.3f} nats in {seconds:.1f} s, marginals {alone:.3f}")
    evidence(id="TR-08", system="Mixture of mixed columns", claim=f"{name}: held-out nats per row, exact, k = 32",
             reference=f"independent marginals: {alone:.2f}", reached=reached, tolerance=most, unit="nats")  # fmt: skip
    assert reached < alone - 3

    # Completion: a fifth of the entries of held-out rows are hidden; the conditional mode or mean against the
    # marginals' own, which is the column's most frequent code or mean.
    rows = data.holdout.x[:600]
    rng = np.random.default_rng(0)
    observed = torch.from_numpy(rng.random(rows.shape) > 0.2)
    given, blind = model.given(rows, observed), floor.given(rows, observed)
    codes = torch.tensor([f.kind == "category" for f in data.space.fields])
    hidden = ~observed & codes & ~rows.isnan()
    right = [float((c.mean[hidden] == rows[hidden]).double().mean()) for c in (given, blind)]
    evidence(id="TR-16", system="Mixture of mixed columns", reference=f"most frequent code: {right[1]:.3f}",
             claim=f"{name}: hidden categories named rightly, 20 % of entries hidden", at_least=True, reached=right[0],
             tolerance=right[1] + 0.08, unit="accuracy")  # fmt: skip
    mean = blind.mean
    errors = []
    for c in (~codes).nonzero()[:, 0].tolist():
        mask = ~observed[:, c] & ~rows[:, c].isnan()
        gap, plain = ((m[mask, c] - rows[mask, c]).square().mean() for m in (given.mean, mean))
        errors.append(float((gap / plain).sqrt()))
    evidence(id="TR-16", system="Mixture of mixed columns", reference="the column's mean: 1", tolerance=0.95,
             claim=f"{name}: root mean square error of hidden numbers, mean over columns", unit="of the column's mean",
             reached=float(np.mean(errors)))  # fmt: skip

    # A row of draws is a row of the table.
    drawn = model.sample(500)
    back = data.space.encode(data.space.decode(drawn))
    assert torch.equal(back.nan_to_num(-1), drawn.nan_to_num(-1)) and math.isfinite(nats(model, data))
