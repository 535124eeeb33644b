"""What only a GPU can show: the same learning as on the CPU, and the same samples up to rounding.

Noise is drawn on the CPU from counters, so a loss curve on the GPU is that of the CPU up to the rounding of kernels.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from protea.models import MODELS
from protea.training import run as runs
from protea.training.budget import Budget
from protea.training.fit import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]

_path = Path(__file__).parents[1] / "laws" / "cases.py"
_spec = importlib.util.spec_from_file_location("gpu_cases", _path)
assert _spec is not None and _spec.loader is not None
_cases = importlib.util.module_from_spec(_spec)
sys.modules["gpu_cases"] = _cases
_spec.loader.exec_module(_cases)


@pytest.fixture(autouse=True)
def _no_tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = model.state_dict().items()
    return {k: v.cpu().double() for k, v in tensors if v.is_floating_point() and v.numel()}


@pytest.mark.parametrize("case", _cases.CASES, ids=str)
def test_learning_on_the_gpu_follows_the_cpu(case, evidence) -> None:
    """TS-04: the weights after 12 steps agree, and so do samples from the same weights."""
    space, rows = case.data()
    torch.manual_seed(0)
    first = runs.build(case.model, space, MODELS[case.model].config(**case.config))
    first.initialise(rows)
    ends = []
    for name in ("cpu", "cuda"):
        model = copy.deepcopy(first)
        fit(
            model,
            rows,
            None,
            budget=Budget(steps=12),
            judge=None,
            progress=None,
            batch_size=64,
            device=torch.device(name),
        )
        ends.append(floats(model))
    here, there = ends
    assert any(not torch.equal(floats(first).get(k, v), v) for k, v in here.items()), "nothing was learnt"
    worst = max(float((v - there[k]).abs().max() / (1 + v.abs().max())) for k, v in here.items())
    evidence(
        id="TS-04", system=f"{case} on a GPU", claim="weights after 12 steps equal those of the CPU",
        reference="the same fit on the CPU", reached=worst, tolerance=2e-3, unit="largest relative difference",
    )  # fmt: skip


@pytest.mark.parametrize("case", _cases.CASES, ids=str)
def test_samples_on_the_gpu_follow_the_cpu(case) -> None:
    space, rows = case.data()
    torch.manual_seed(0)
    model = runs.build(case.model, space, MODELS[case.model].config(**case.config))
    model.initialise(rows)
    fit(model, rows, None, budget=Budget(steps=3), judge=None, progress=None, batch_size=64)
    here = model.eval().sample(64, rng=5).double()
    there = copy.deepcopy(model).to("cuda").sample(64, rng=5).double()
    assert here.shape == there.shape
    same = ((here - there).abs() <= 1e-3 * (1 + here.abs())) | (here.isnan() & there.isnan())
    assert same.double().mean() > 0.97  # rounding may tip a threshold now and then
