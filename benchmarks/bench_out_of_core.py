"""Exact EM of a Gaussian mixture from a file that is not held in memory: 10 million rows x 16 float32 columns, 640 MB.

The peak resident memory (VmHWM) is that of a fresh process that opens the file, starts and iterates; a process with a
tenth of the rows shows that memory does not grow with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch loads

import numpy as np

ROWS, D, K, EPOCHS = 10_000_000, 16, 8, 3


def write(path: Path, rows: int) -> None:
    """A mixture of K Gaussians, in blocks."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(K, D))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, D))
    for i in range(0, rows, 1 << 18):
        n = min(1 << 18, rows - i)
        out[i : i + n] = rng.normal(size=(n, D)) + centres[rng.integers(K, size=n)]
    out.flush()


def learn(path: Path) -> dict:
    from protea.models.classical.gmm import GaussianMixture
    from protea.training.em import EM
    from protea.training.stream import NpyStream, fit_stream

    stream = NpyStream(path)
    model = GaussianMixture((D,), K, "full")
    began = time.perf_counter()
    model.initialise(stream.sample(20_000))
    history = fit_stream(EM(model, tolerance=0.0), stream, EPOCHS)
    seconds = time.perf_counter() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "rows": len(stream), "columns": D, "dtype": str(stream.dtype), "k": K, "covariance": "full",
        "iterations": len(history), "seconds_per_iteration": seconds / len(history),
        "log_prob": [figures["log_prob"] for figures in history], "peak_MB": int(peak.split()[1]) / 1000,
    }  # fmt: skip


def main() -> None:
    from harness import save

    found = []
    for rows in (ROWS // 10, ROWS):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npy"
            write(path, rows)
            done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        print(found[-1], flush=True)
    assert found[-1]["peak_MB"] < 2000
    save("out-of-core", found)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(learn(Path(sys.argv[1]))))
    else:
        main()
