"""Conformal p-values are valid, and strange rows are found; where raw likelihood fails, it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM

from protea.core import Countable, Normalised
from protea.data import open_data
from protea.errors import ConfigError, DataError
from protea.inference.anomaly import benjamini_hochberg, conformal_p, judge_anomalies
from protea.inference.classify import auroc
from protea.models.classical.gmm import GaussianMixture
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Image
from protea.training.run import build


def test_p_values_count_the_calibration_rows():
    """By hand, and by the definition, with ties."""
    rng = np.random.default_rng(0)
    calibration, scores = rng.integers(0, 20, 57).astype(float), rng.integers(-2, 23, 40).astype(float)
    want = [(1 + (calibration <= s).sum()) / 58 for s in scores]
    got = conformal_p(torch.from_numpy(scores), torch.from_numpy(calibration))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-15)
    assert float(conformal_p(torch.tensor([-torch.inf]), torch.zeros(9))[0]) == 0.1


def test_adjusted_p_values_are_scipys(evidence):
    p = np.random.default_rng(1).uniform(size=200) ** 2
    p[:20] = p[0]
    got = benjamini_hochberg(torch.from_numpy(p)).numpy()
    error = np.abs(got - stats.false_discovery_control(p)).max()
    evidence(id="TR-26", system="Anomaly scores", claim="Benjamini-Hochberg adjusted p-values", reached=error,
             reference="scipy.stats.false_discovery_control", tolerance=1e-12, unit="max abs")  # fmt: skip


def scored(seed: int, n: int = 700) -> tuple[GaussianMixture, torch.Tensor]:
    """A misspecified model (one Gaussian) of skewed rows: validity must not need a right model."""
    x = Streams(seed, n).normal(3, dtype=torch.float64)
    x[:, 1] = x[:, 1].exp()
    model = GaussianMixture((3,), 1, "diag")
    model.initialise(Rows(x[:200], None, torch.arange(200)))
    return model, model.log_prob(x)


def test_p_values_of_fresh_normal_rows_are_uniform(evidence):
    """One fresh row for each of 400 seeds (exactly independent), each with its own model and 99 calibration rows."""
    p, ties = [], []
    for seed in range(400):
        _, nats = scored(seed, 300)
        p.append(float(conformal_p(nats[299:], nats[200:299])[0]))
        coarse = (nats / 2).round()  # heavy ties, broken at random
        ties.append(float(conformal_p(coarse[299:], coarse[200:299], Streams(seed, 1))[0]))
    for name, found in (("conservative", p), ("ties broken at random", ties)):
        distance = stats.kstest(found, "uniform").statistic
        evidence(id="TR-26", system="Anomaly scores", claim=f"p-values of 400 fresh normal rows are uniform ({name})",
                 reference="Kolmogorov-Smirnov distance, 5 % level", reached=distance, tolerance=1.358 / 20,
                 unit="distance")  # fmt: skip
    for level in (0.05, 0.1, 0.25):  # within three standard errors of the promise P(p <= a) <= a
        rate = float(np.mean(np.array(p) <= level))
        assert rate <= level + 3 * (level * (1 - level) / 400) ** 0.5, (level, rate)


def test_false_discoveries_are_controlled_and_strange_rows_found(evidence):
    shares, found = [], []
    for seed in range(40):
        model, nats = scored(1000 + seed)
        strange = model.log_prob(Streams(5000 + seed, 20).normal(3, dtype=torch.float64) * 2 + 12)
        fresh = torch.cat((nats[600:], strange))
        flagged = judge_anomalies(fresh, nats[200:600]).q <= 0.2
        shares.append(float(flagged[:100].sum()) / max(int(flagged.sum()), 1))
        found.append(float(flagged[100:].double().mean()))
    error = 3 * float(np.std(shares)) / 40**0.5
    evidence(id="TR-26", system="Anomaly scores", claim="share of normal rows among those of q <= 0.2, 40 seeds",
             reference="Benjamini-Hochberg", reached=np.mean(shares), tolerance=0.2 * 100 / 120 + error)  # fmt: skip
    assert np.mean(found) > 0.9


def test_typicality_flags_both_sides():
    calibration, training = torch.randn(200).double(), torch.randn(500).double()
    nats = torch.tensor([-8.0, 0.0, 8.0]).double()
    assert (judge_anomalies(nats, calibration).p > 0.9).tolist() == [False, False, True]
    both = judge_anomalies(nats, calibration, statistic="typicality", training=training)
    assert (both.p < 0.01).tolist() == [True, False, True]


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="3 held-out rows cannot calibrate"):
        judge_anomalies(torch.zeros(2), torch.zeros(3))
    with pytest.raises(DataError, match="NaN among the scores"):
        conformal_p(torch.tensor([torch.nan]), torch.zeros(30))
    with pytest.raises(ConfigError, match="no statistic 'odd'"):
        judge_anomalies(torch.zeros(2), torch.zeros(30), statistic="odd")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_digit_left_out_is_strange(evidence):
    """A mixture of Gaussians that never saw an 8 (or a 0, 3, 5), beside scikit-learn's detectors."""
    digits = open_data("digits")
    train_x = torch.cat((digits.train.x, digits.validation.x)).double().reshape(-1, 64)
    train_y = torch.cat((digits.train.y, digits.validation.y))
    test_x, test_y = digits.holdout.x.double().reshape(-1, 64), digits.holdout.y
    areas: dict[str, list[float]] = {"gmm": [], "IsolationForest": [], "OneClassSVM": []}
    for left_out in range(10):
        x = train_x[train_y != left_out]
        model = GaussianMixture((64,), 20, "full", reg_covar=1.0)
        model.initialise(Rows(x, None, torch.arange(len(x))))
        for _ in range(15):
            model.maximise(model.expect(x))
        normal = test_y != left_out
        scores = {
            "gmm": model.log_prob(test_x),
            "IsolationForest": torch.from_numpy(
                IsolationForest(random_state=0).fit(x.numpy()).score_samples(test_x.numpy())
            ),
            "OneClassSVM": torch.from_numpy(OneClassSVM(nu=0.1).fit(x.numpy()).score_samples(test_x.numpy())),
        }
        for name, s in scores.items():
            areas[name].append(auroc(s, normal, replicates=5).value)
    told = ", ".join(f"{name} {np.mean(a):.3f} (least {min(a):.3f})" for name, a in areas.items())
    evidence(id="TR-26", system="Anomaly scores", claim=f"digit left out, mean AUROC of ten: {told}",
             reference="IsolationForest, OneClassSVM", reached=np.mean(areas["gmm"]), tolerance=0.9,
             at_least=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.shared
def test_likelihood_fails_from_fashion_to_digits_and_holds_the_other_way(shared_data: Path, evidence):
    """Nalisnick et al. 2019: models of clothes give digits a higher likelihood than clothes."""
    sets = {
        name: torch.from_numpy(np.load(shared_data / "images" / f"{name}.npz")["x"][:10_000])[:, None]
        for name in ("mnist10k", "fashion_mnist_12k")
    }
    normal = torch.arange(2000) < 1000
    found = {}
    for home, away in (("fashion_mnist_12k", "mnist10k"), ("mnist10k", "fashion_mnist_12k")):
        train = Rows(sets[home][:5000], None, torch.arange(5000))
        model = build("marginals", Image(1, 28, 28), {"smoothing": 0.1})
        assert isinstance(model, Normalised) and isinstance(model, Countable)
        model.initialise(train)
        model.maximise(model.expect(train.x))
        both = torch.cat((sets[home][9000:], sets[away][9000:]))
        nats, held = model.log_prob(both), model.log_prob(sets[home][8000:9000])
        typical = judge_anomalies(nats, held, statistic="typicality", training=model.log_prob(train.x)).p
        flat = train.x[:2000].reshape(2000, -1).numpy()
        forest = IsolationForest(random_state=0).fit(flat).score_samples(both.reshape(2000, -1).numpy())
        scores = {"likelihood": nats, "typicality": typical, "forest": torch.from_numpy(forest)}
        found[home] = {name: auroc(s, normal, replicates=5).value for name, s in scores.items()}
    ours, theirs = found["mnist10k"], found["fashion_mnist_12k"]
    evidence(id="TR-26", system="Anomaly scores", claim="clothes among digits: AUROC of the likelihood of independent "
             f"pixels (typicality {ours['typicality']:.3f}, IsolationForest {ours['forest']:.3f})",
             reference="labels", reached=ours["likelihood"], tolerance=0.9, at_least=True)  # fmt: skip
    evidence(id="TR-26", system="Anomaly scores", claim="digits among clothes: AUROC of the likelihood of independent "
             "pixels: it fails, as Nalisnick et al. say", reference="0.5 is chance", reached=theirs["likelihood"],
             tolerance=0.5)  # fmt: skip
    evidence(id="TR-26", system="Anomaly scores", claim="digits among clothes: AUROC of typicality (IsolationForest "
             f"{theirs['forest']:.3f})", reference="labels", reached=theirs["typicality"], tolerance=0.85,
             at_least=True)  # fmt: skip
