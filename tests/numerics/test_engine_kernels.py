"""The decoder's kernels at odd sizes, settings and numbers of threads, against the model in float64."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from protea.kernels.pages import PAGE, large_pages
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.serving.blocks import Blocks
from protea.serving.compute import Fused, Job
from protea.serving.engine import Engine
from protea.serving.library import library
from protea.serving.requests import Request
from protea.spaces import Tokens

V = 37
ODD = {  # widths that are no whole number of vectors, and every setting that the kernels know
    "llama": {"d_model": 44, "n_heads": 2, "n_kv_heads": 1, "d_ff": 70},
    "mixtral": {"d_model": 24, "n_heads": 2, "n_kv_heads": 1, "d_ff": 21, "n_experts": 5},
    "deepseek-v2": {"n_experts": 12, "top_k": 3, "n_groups": 4, "top_groups": 2, "q_rank": 20, "scale": 1.7},
    "deepseek-v3": {
        "n_experts": 12, "top_k": 3, "n_groups": 3, "top_groups": 2, "d_c": 21, "d_v": 9, "interleave": False,
    },
    "mamba": {"n_layers": 2, "d_model": 19, "d_state": 21, "d_conv": 3},
    "mamba2": {"n_layers": 2, "d_model": 21, "d_head": 14, "d_state": 5, "n_groups": 3},
    "jamba": {"experts": (2, 1), "n_experts": 3, "n_active": 2, "d_state": 7},
}  # fmt: skip
pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")


def odd(name: str):
    torch.manual_seed(1)
    config = ARCHITECTURES[name].scaled(2, 32, 96)
    known = ODD[name]
    net = language_model(name, Tokens(12, vocabulary=V, tokenizer="ids"), replace(config, **known)).eval()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for buffer in net.buffers():
        if buffer.shape == (known.get("n_experts"),):  # a router's bias of the selection
            buffer += 0.3 * torch.randn_like(buffer)
    return net.requires_grad_(False)


@pytest.mark.parametrize("name", ODD)
@torch.inference_mode()
def test_odd_sizes_and_settings(name, evidence):
    """Texts of 1 to 40 tokens in one call of more rows than a piece of weights serves, then one by one."""
    net, lengths = odd(name), (40, 1, 17, 9)
    x = torch.randint(0, V, (len(lengths), 44))
    want = deepcopy(net).double().logits(x)
    runs = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            blocks = Blocks(1024, 96, block=16)
            fused = Fused(net, blocks, rows=30)
            texts = [blocks.new() for _ in lengths]
            got = [[] for _ in lengths]
            for step in range(5):
                cuts = [(0 if step == 0 else n + step - 1, n + step) for n in lengths]
                jobs = [Job(t, row[a:b].tolist(), b - a) for t, row, (a, b) in zip(texts, x, cuts, strict=True)]
                for parts, said in zip(got, fused(jobs), strict=True):
                    parts.append(said.logits)
            runs.append([torch.cat(parts) for parts in got])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))  # whatever the number of threads
    worst = max(float((a - w[: len(a)]).abs().max() / want.abs().max()) for a, w in zip(runs[0], want, strict=True))
    evidence(id="AR-05", system="Decoding engine", claim=f"kernels at odd sizes, {name}: logits",
             reference="the model in float64", reached=worst, tolerance=1e-5, unit="relative")  # fmt: skip


def test_states_that_are_shared_are_not_overwritten():
    net = odd("mamba")
    blocks = Blocks(1024, 96, block=4)
    fused = Fused(net, blocks, rows=8)
    text = blocks.new()
    fused([Job(text, [1, 2, 3, 4, 5], 1)])
    twin = blocks.fork(text)
    a = fused([Job(text, [6, 7], 1)])[0].logits
    b = fused([Job(twin, [6, 7], 1)])[0].logits
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "mamba", "mamba2", "jamba"])
def test_every_kind_of_layer_is_fused(name):
    engine = Engine(odd(name))
    handle = engine.submit(Request([1, 2], 3))
    engine.run()
    assert engine.fused and len(handle.tokens) == 3


def test_large_pages_keep_values():
    x = torch.arange(3 * PAGE // 4, dtype=torch.float32)
    given = large_pages([x])
    assert given % PAGE == 0 and 0 <= given <= x.nbytes
    assert given > 0 or sys.platform != "linux" or "never" in large_pages_setting()
    assert torch.equal(x, torch.arange(3 * PAGE // 4, dtype=torch.float32))
    assert large_pages([torch.zeros(100)]) == large_pages([]) == 0


def large_pages_setting() -> str:
    """Which of "always madvise never" the system has in brackets, or that it has no such pages."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            text = file.read()
    except OSError:
        return "never"
    return text.split("[")[1].split("]")[0]
