"""sLSTM against the authors' package (its "vanilla" backend), forwards and backwards.

The package must not be importable beside transformers, whose xLSTM it would replace. So it lives in a folder apart,

    uv pip install --no-deps --target FOLDER xlstm==2.0.6

and the test runs it in a process of its own when PROTEA_XLSTM names the folder.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from protea.nn.slstm import slstm

THEIRS = """
import sys, torch
from safetensors.torch import load_file, save_file
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig
x = load_file(sys.argv[1])
wx, R, b, weight = x["wx"].requires_grad_(), x["R"], x["b"], x["weight"]
heads, d = R.shape[0], R.shape[1]
cell = sLSTMCell(sLSTMCellConfig(
    hidden_size=heads * d, num_heads=heads, backend="vanilla", dtype="float32", enable_automatic_mixed_precision=False))
with torch.no_grad():
    cell._recurrent_kernel_.copy_(R.flatten(2).transpose(1, 2))
    cell._bias_.copy_(b.flatten())
y, state = cell(wx.flatten(2))
y = y.transpose(1, 2)
(y * weight).sum().backward()
dR = cell._recurrent_kernel_.grad.transpose(1, 2).reshape(R.shape).contiguous()
out = {"y": y.detach().contiguous(), "state": state.detach(), "dwx": wx.grad, "dR": dR}
save_file({k: v.clone() for k, v in out.items()}, sys.argv[2])
"""


def test_cell(tmp_path, evidence):
    folder = os.environ.get("PROTEA_XLSTM")
    if not folder:
        pytest.skip("PROTEA_XLSTM names no folder with the package xlstm (see this file)")
    batch, t, heads, d = 2, 17, 3, 4
    wx = 2 * torch.randn(batch, t, 4, heads, d)
    R, b, weight = torch.randn(heads, d, 4, d), torch.randn(4, heads, d), torch.randn(batch, t, heads, d)
    save_file({"wx": wx, "R": R, "b": b, "weight": weight}, tmp_path / "in.safetensors")
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", THEIRS, str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")],
        check=True, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
    )  # fmt: skip
    want = load_file(tmp_path / "out.safetensors")
    wx, R = wx.requires_grad_(), R.requires_grad_()
    y, state = slstm(wx + b, R)
    (y * weight).sum().backward()
    assert wx.grad is not None and R.grad is not None
    got = {"y": y, "state": torch.stack(state).flatten(2), "dwx": wx.grad, "dR": R.grad}
    for name, claim in (("y", "outputs"), ("state", "last h, c, n, m"), ("dwx", "gradient of the gates"),
                        ("dR", "gradient of R")):  # fmt: skip
        reached = ((got[name] - want[name]).abs().max() / want[name].abs().max()).item()
        evidence(
            id="AR-22", system="sLSTM", claim=f"cell, {claim}", reference="xlstm 2.0.6, vanilla backend",
            reached=reached, tolerance=1e-5, unit="relative",
        )  # fmt: skip
