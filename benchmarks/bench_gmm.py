"""One EM iteration of a Gaussian mixture against scikit-learn and pomegranate, n = 200k, d = 16, k = 32, float64.

All from the same start, two threads; each timing is of three iterations, ours and the peer's in turn. What bounds us is
written into the results by `bound`. With PROTEA_KERNELS=off the PyTorch form is timed instead of the compiled one.

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


def bound(covariance: str) -> str:
    """Seconds that an iteration's multiplications and additions take at the rate of a large matrix product."""
    a = torch.randn(1536, 1536, dtype=torch.float64)
    rate = len(a) ** 3 / min(timed(lambda: a @ a) for _ in range(5))
    square = D * (D + 1) // 2 + D if covariance == "full" else 2 * D
    work = {"densities": N * K * square, "statistics": N * K * (square + 1)}
    parts = ", ".join(f"{name} {count / rate:.4f} s" for name, count in work.items())
    return f"at the rate of a matrix product ({2e-9 * rate:.0f} GFlop/s): {parts}"


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

        note = bound(covariance)
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
