"""Norms and perceptrons against torch and transformers."""

from __future__ import annotations

import pytest
import torch

from protea.nn.activations import gelu_tanh, relu_squared
from protea.nn.mlp import MLP
from protea.nn.mlp_gated import GeGLU, SwiGLU
from protea.nn.norm import OffsetRMSNorm, RMSNorm

transformers = pytest.importorskip("transformers")


def gap(a, b):
    return (a - b).abs().max().item()


def test_rms_norm(evidence):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x, g = 3 * torch.randn(4, 5, 16), torch.randn(16)
    twins = [
        (RMSNorm(16, 1e-5), LlamaRMSNorm(16, 1e-5), "transformers LlamaRMSNorm"),
        (RMSNorm(16, 1e-5), torch.nn.RMSNorm(16, 1e-5), "torch.nn.RMSNorm"),
        (OffsetRMSNorm(16, 1e-5), Gemma2RMSNorm(16, 1e-5), "transformers Gemma2RMSNorm"),
    ]
    for ours, theirs, name in twins:
        with torch.no_grad():
            ours.g.copy_(g)
            theirs.weight.copy_(g)
        evidence(id="AR-14", system=type(ours).__name__, claim="output", reference=name,
                 reached=gap(ours(x), theirs(x)), tolerance=2e-6, unit="abs")  # fmt: skip
        if "torch" not in name:  # half precision: normed in float32, as theirs
            half = x.bfloat16()
            evidence(id="AR-14", system=type(ours).__name__, claim="output in bfloat16", reference=name,
                     reached=gap(ours.bfloat16()(half).float(), theirs.bfloat16()(half).float()), tolerance=0,
                     unit="abs")  # fmt: skip
    evidence(id="AR-14", system="RMSNorm", claim="the scale of the input drops out", reference="invariance",
             reached=gap(RMSNorm(16, 0.0)(100 * x), RMSNorm(16, 0.0)(x)), tolerance=1e-5, unit="abs")  # fmt: skip


@pytest.mark.parametrize(("make", "act"), [(SwiGLU, "silu"), (GeGLU, "gelu_pytorch_tanh")])
def test_gated(make, act, evidence):
    from transformers.models.llama.modeling_llama import LlamaMLP

    theirs = LlamaMLP(
        transformers.LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=40, hidden_act=act)
    )
    ours, x = make(16, 40), torch.randn(3, 5, 16)
    ours.load_state_dict({name.replace("_proj", ""): t for name, t in theirs.state_dict().items()})
    evidence(id="AR-16", system=make.__name__, claim="output", reference=f"transformers LlamaMLP ({act})",
             reached=gap(ours(x), theirs(x)), tolerance=1e-6, unit="abs")  # fmt: skip


@pytest.mark.parametrize(("act", "theirs"), [(gelu_tanh, "gelu_new"), (relu_squared, "relu2")])
def test_activations(act, theirs, evidence):
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1001)
    evidence(id="AR-16", system=act.__name__, claim="values on [-6, 6]", reference=f"transformers ACT2FN[{theirs!r}]",
             reached=gap(act(x), ACT2FN[theirs](x)), tolerance=1e-6, unit="abs")  # fmt: skip


def test_plain(evidence):
    ours, x = MLP(8, 24, relu_squared), torch.randn(5, 8)
    up, down = ours.up, ours.down
    want = (x @ up.weight.T + up.bias).clamp_min(0) ** 2 @ down.weight.T + down.bias
    evidence(id="AR-06", system="MLP", claim="output with squared ReLU", reference="formula",
             reached=gap(ours(x), want), tolerance=1e-6, unit="abs")  # fmt: skip
