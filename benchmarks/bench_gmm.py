"""One EM iteration of a Gaussian mixture against scikit-learn and pomegranate, n = 200k, d = 16, k = 32, float64.

All from the same start, two threads; each timing is of three iterations, ours and the peer's in turn. What bounds us is
written into the results by `bound`: the two matrix products of `distributions/natural.py` alone, timed on chunks of the
same shapes, and the exponentials of the responsibilities.

OpenMP's own policy is used, as in a user's Python: idle threads spin for a while. The command line lets them sleep
(OMP_WAIT_POLICY=PASSIVE), which beside other busy processes is far faster, and on an idle machine costs a mixture's
small operations about a third: set the variable to see it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from harness import compare, save, several, timed
from sklearn.mixture import GaussianMixture as Peer

from protea.models.classical.gmm import GaussianMixture
from protea.space import Rows

N, D, K = 200_000, 16, 32


def bound(features: int, rows: int = 2048) -> str:
    """Seconds that an iteration's matrix products and exponentials take by themselves."""
    phi, eta = torch.randn(features, rows, dtype=torch.float64), torch.randn(K, features, dtype=torch.float64)
    r, sums = eta @ phi, torch.zeros(K, features, dtype=torch.float64)
    parts = {
        "log densities": lambda: torch.mm(eta, phi, out=r),
        "statistics": lambda: sums.addmm_(r, phi.T),
        "exponentials": lambda: r.clamp_(-9, 0).exp2_(),
    }
    times = {name: min(timed(work) for _ in range(50)) * N / rows for name, work in parts.items()}
    return "alone: " + ", ".join(f"{name} {value:.3f} s" for name, value in times.items())


def processor(work) -> float:
    """Median processor seconds of all threads: what other processes on the machine disturb least."""
    spent = []
    for _ in range(5):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return sorted(spent)[2]


def pomegranate(x: torch.Tensor, ours: GaussianMixture, covariance: str):
    """An iteration of pomegranate's mixture from our parameters, or None where it is not installed."""
    try:
        from pomegranate.distributions import Normal
        from pomegranate.gmm import GeneralMixtureModel
    except Exception:
        return None
    found = [
        Normal(mean.clone(), cov.clone(), covariance_type=covariance)
        for mean, cov in zip(ours.means[0], ours.family.covariances)
    ]
    model = GeneralMixtureModel(found, priors=ours.log_weights[0].exp())

    def iteration() -> None:
        model.summarize(x)
        model.from_summaries()

    return iteration


def pairwise(name: str, ours: Callable[[], object], peer: Callable[[], object], rounds: int, note: str) -> dict:
    """Seconds of three iterations of each."""
    return compare(f"three iterations of {name}", several(ours), several(peer), rounds=rounds, note=note)


def main() -> None:
    warnings.filterwarnings("ignore")  # one iteration does not converge
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, D)) + 4 * rng.normal(size=(K, D))[rng.integers(K, size=N)]).astype(np.float64)
    rows = torch.from_numpy(x)
    found = []
    for covariance in ("full", "diag"):
        ours = GaussianMixture((D,), k=K, covariance=covariance)
        ours.initialise(Rows(rows[:20_000], None, torch.arange(20_000)))
        cov = ours.family.covariances.numpy()
        peer = Peer(
            K, covariance_type=covariance, max_iter=1, weights_init=ours.log_weights[0].exp().numpy(),
            means_init=ours.means[0].numpy().copy(), precisions_init=np.linalg.inv(cov) if cov.ndim == 3 else 1 / cov,
        )  # fmt: skip
        other = pomegranate(rows, ours, covariance)
        peer.fit(x[:2_000])  # sets it up; the parameters are then those of our start
        peer._initialize(x, np.zeros((N, K)))

        def peer_iteration(peer=peer) -> None:
            _, log_r = peer._e_step(x)
            peer._m_step(x, log_r)

        def our_iteration(ours=ours) -> None:
            with torch.no_grad():
                ours.maximise(ours.expect(rows))

        note = bound((D * (D + 1) // 2 if covariance == "full" else D) + D + 1)
        cpu = processor(our_iteration), processor(peer_iteration)
        note += f"; processor seconds {cpu[0]:.3f}, peer {cpu[1]:.3f}, {cpu[1] / cpu[0]:.1f} times"
        found.append(pairwise(f"EM, {covariance}, scikit-learn", our_iteration, peer_iteration, 7, note))
        if other is not None:
            found.append(pairwise(f"EM, {covariance}, pomegranate", our_iteration, other, 3, ""))
        error = np.abs(ours.means[0].numpy() - peer.means_).max()
        print(f"largest difference of means after as many iterations each: {error:.2g}", flush=True)
    save("gmm", found)


if __name__ == "__main__":
    main()
