"""Gaussian mixtures on real data: digits, speakers, the background of a video."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Peer
from sklearn.model_selection import train_test_split

from protea.distributions.priors import conjugate
from protea.distributions.student_t import StudentT
from protea.models.classical.gmm import GaussianMixture
from protea.models.classical.mixture import Mixture
from protea.models.classical.selection import climb
from protea.space import Rows

pytestmark = pytest.mark.slow


def rows(x: np.ndarray, y: np.ndarray | None = None) -> Rows:
    return Rows(torch.from_numpy(x).double(), None if y is None else torch.from_numpy(y).long(), torch.arange(len(x)))


def test_digits_against_scikit_learn(evidence):
    """8 x 8 digits in 30 principal components: K = 10 beats one Gaussian by far and K = 20 overfits, as in the peer."""
    x = PCA(30, random_state=0).fit_transform(load_digits().data)
    train, test = train_test_split(x, test_size=0.3, random_state=0)
    ours, theirs = {}, {}
    for k in (1, 10, 20):
        model = GaussianMixture((30,), k, "full", reg_covar=1e-6)
        model.initialise(rows(train), seed=0)
        climb(model, rows(train), 100, 1e-3)
        ours[k] = float(model.log_prob(torch.from_numpy(test)).mean())
        theirs[k] = Peer(k, random_state=0, reg_covar=1e-6).fit(train).score(test)
    assert ours[10] > ours[1] + 3 and ours[10] > ours[20]
    evidence(
        id="TR-07", system="Gaussian mixture", claim="digits, PCA-30, one Gaussian: held-out log-likelihood",
        reference="sklearn.mixture.GaussianMixture", reached=abs(ours[1] - theirs[1]), tolerance=1e-3, unit="nats",
    )  # fmt: skip
    evidence(
        id="TR-07", system="Gaussian mixture", claim="digits, PCA-30, K = 10: held-out nats below the peer's",
        reference="sklearn.mixture.GaussianMixture", reached=theirs[10] - ours[10], tolerance=1.5, unit="nats",
    )  # fmt: skip
    reached = []
    for name in ("none", "conjugate"):  # so many components that each has about 30 rows in 30 dimensions
        prior, alpha = conjugate(name, 30)
        model = GaussianMixture((30,), 40, "full", prior=prior, weight_prior=alpha)
        model.initialise(rows(train), seed=0)
        climb(model, rows(train), 100, 1e-3)
        reached.append(float(model.log_prob(torch.from_numpy(test)).mean()))
    evidence(
        id="TR-09", system="Gaussian mixture", claim="digits, K = 40: held-out gain of a conjugate prior",
        reference="the same without a prior, which overfits", reached=reached[1] - reached[0], tolerance=10.0,
        unit="nats", at_least=True,
    )  # fmt: skip


def _mfcc():
    spec = importlib.util.spec_from_file_location("mfcc", Path(__file__).parents[1] / "mfcc.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mfcc


@pytest.mark.parametrize("name", ["gaussian", "student-t"])
def test_six_speakers(name: str, shared_data: Path, evidence):
    """One class-conditional mixture of 16 diagonal components a speaker on 20 coefficients; log p adds over frames."""
    mfcc = _mfcc()
    held = np.load(shared_data / "audio" / "spoken_digits.npz")
    some = held["is_test"] | (held["take"] % 3 == 0)  # a third of the training takes is plenty
    clips = [mfcc(x[:n].astype(float), int(held["sample_rate"])) for x, n in zip(held["x"][some], held["length"][some])]
    speaker, test = held["speaker"][some].astype(np.int64), held["is_test"][some]
    frames = np.concatenate([c for c, t in zip(clips, test) if not t])
    labels = np.repeat(speaker[~test], [len(c) for c, t in zip(clips, test) if not t])
    data = rows(frames, labels)
    if name == "gaussian":
        model: Mixture = GaussianMixture((20,), 16, "diag", classes=6, reg_covar=1e-3)
    else:
        model = Mixture(StudentT(96, (20,), "diag", 1e-3), 16, classes=6)
    model.initialise(data)
    climb(model, data, 20, 1e-3)
    right = 0
    for clip, who, held_out in zip(clips, speaker, test):
        if held_out:
            x = torch.from_numpy(clip)
            scores = [float(model.log_prob(x, torch.full((len(x),), s)).sum()) for s in range(6)]
            right += int(np.argmax(scores) == who)
    evidence(
        id="TR-22", system=f"{name} mixture", claim="free spoken digits: speaker of 300 held-out clips, 6 speakers",
        reference="the official test takes", reached=right / int(test.sum()), tolerance=0.95, unit="accuracy",
        at_least=True,
    )  # fmt: skip


def test_moving_square_background(evidence):
    """Stauffer & Grimson 1999: a mixture for each pixel; what its heaviest component does not explain is foreground."""
    rng = np.random.default_rng(0)
    frames, size = 40, 20
    still = rng.uniform(50, 200, size=(size, size))
    video = still + 4 * rng.normal(size=(frames, size, size))
    truth = np.zeros(video.shape, bool)
    for t in range(frames):
        truth[t, 5:10, t // 2 : t // 2 + 5] = True
    video[truth] = 20 + 4 * rng.normal(size=int(truth.sum()))
    pixels = video.reshape(frames, -1)
    y = np.tile(np.arange(size * size), frames)  # each pixel is a class with its own mixture
    data = rows(pixels.reshape(-1, 1), y)
    model = GaussianMixture((1,), 2, "diag", classes=size * size, reg_covar=4.0)
    model.initialise(data)
    climb(model, data, 15, 1e-4)
    heavy = model.log_weights.argmax(1)
    mean = model.means[torch.arange(size * size), heavy, 0].numpy()
    deviation = model.scale.view(size * size, 2)[torch.arange(size * size), heavy].numpy()
    mask = np.abs(pixels - mean) > 4 * deviation
    truth = truth.reshape(frames, -1)
    overlap = (mask & truth).sum() / (mask | truth).sum()
    evidence(
        id="TR-22", system="Gaussian mixture", claim="moving square: mask of the foreground, a mixture a pixel",
        reference="the true mask", reached=overlap, tolerance=0.9, unit="intersection over union", at_least=True,
    )  # fmt: skip
