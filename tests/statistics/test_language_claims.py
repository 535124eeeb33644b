"""What is claimed of positions and blocks, measured on text by small networks."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from protea.models.autoregressive.architectures import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from recipes import depth_width, positions

    return {"positions": positions, "depth": depth_width}


@pytest.fixture
def text(shared_data):
    """Bytes of tinyshakespeare: to learn from, and held out."""
    found = torch.frombuffer(bytearray((shared_data / "text" / "tinyshakespeare.txt").read_bytes()), dtype=torch.uint8)
    return found[:900_000].long(), found[-40_000:].long()


@pytest.mark.slow
@pytest.mark.shared
def test_scaled_rotary_positions_carry_further(recipes, text, evidence):
    """Learnt on 128 bytes, judged on 512 without more learning: YaRN and dynamic NTK lose less than no scaling."""
    p = recipes["positions"]
    torch.manual_seed(0)
    net = p.network("rope", layers=3, d=48)
    p.learn(net, text[0], 300)
    net.eval()
    at_home, far = p.bits(net, text[1], 128), p.bits(net, text[1], 512)
    found = {name: p.bits(p.rescale(net, scaling), text[1], 512) for name, scaling in p.SCALINGS.items()}
    assert far > at_home, "positions never seen should cost something"
    for name in ("YaRN", "dynamic NTK"):
        evidence(
            id="AR-18", system=f"RoPE scaling: {name}", reference="no scaling", unit="bits per byte", tolerance=0,
            claim=f"bits per byte at 4 times the training length, less those unscaled ({far:.2f}; "
            f"{at_home:.2f} at the training length)", reached=found[name] - far,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.shared
def test_llamas_block_learns_faster_than_gpt2s(recipes, text, evidence):
    """Equal parameters (2 %), steps and blocks of text; three seeds."""
    p, gaps = recipes["positions"], []
    for seed in range(3):
        found = {}
        for name, config in (
            ("llama", ARCHITECTURES["llama"].config(2, 48, 2, 2, 128, 128, tie=True)),
            ("gpt2", ARCHITECTURES["gpt2"].config(2, 48, 2, 160, 128)),
        ):
            torch.manual_seed(seed)
            net = ARCHITECTURES[name].build(config, 256, 256)
            p.learn(net, text[0], 200, seed=seed)
            found[name] = p.bits(net.eval(), text[1], 128), sum(x.numel() for x in net.parameters())
        assert abs(found["llama"][1] / found["gpt2"][1] - 1) < 0.02
        gaps.append(found["llama"][0] - found["gpt2"][0])
    evidence(
        id="AR-13", system="Llama's block", claim="bits per byte less GPT-2's, worst of three seeds", reference="GPT-2",
        reached=max(gaps), tolerance=0, unit="bits per byte",
    )  # fmt: skip
    assert statistics.fmean(gaps) < 0


def test_shapes_of_one_size(recipes):
    """Every depth has the parameters wanted, within 2 %."""
    d = recipes["depth"]
    for wanted in (100_000, 200_000, 1_000_000):
        for layers in (1, 2, 4, 8):
            assert abs(d.parameters("llama", d.shaped(layers, wanted)) / wanted - 1) < 0.02
