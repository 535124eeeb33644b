"""Fair pairwise timing: ours and the peer's in turn (A B A B ...), medians, and the median of the pairwise ratios.

The machine's speed drifts, so only figures of one run are comparable, and the ratio is the one to quote.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def seconds(work: Callable[[], object]) -> float:
    """Seconds of some work once the machine is quiet: threads of the library timed before spin for a while."""
    time.sleep(0.2)
    return timed(work)


def timed(work: Callable[[], object]) -> float:
    """Seconds of some work, at once."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def several(work: Callable[[], object], times: int = 3) -> Callable[[], None]:
    """The work done a few times, as in any real run: a single call of milliseconds also pays for waking up."""

    def run() -> None:
        for _ in range(times):
            work()

    return run


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], *, rounds: int = 7, note: str = ""
) -> dict:
    """Time the two in turn after one warm-up each; print and return the medians and the ratio peer / ours."""
    seconds(ours), seconds(peer)
    pairs = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    row = {
        "name": name,
        "ours_s": statistics.median(a for a, _ in pairs),
        "peer_s": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(ratios),
        "times_faster_range": [ratios[0], ratios[-1]],
        "rounds": rounds,
        "note": note,
    }
    print(f"{name}: ours {row['ours_s']:.4g} s, peer {row['peer_s']:.4g} s, {row['times_faster']:.2f} times faster "
          f"[{ratios[0]:.2f}, {ratios[-1]:.2f}] {note}", flush=True)  # fmt: skip
    return row


def save(subject: str, rows: list[dict]) -> Path:
    """Write benchmarks/results/SUBJECT-DEVICE.json with hardware and date."""
    RESULTS.mkdir(exist_ok=True)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"{subject}-{device}.json"
    facts = {"subject": subject, "hardware": hardware(), "cores": os.cpu_count(), "torch": torch.__version__,
             "date": datetime.date.today().isoformat(), "rows": rows}  # fmt: skip
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"wrote {path}")
    return path
