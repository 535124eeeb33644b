"""Entropy patches of real text: where they begin, and that their mean size is the one asked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from protea.models.autoregressive import llama
from protea.models.autoregressive.blt import BLTConfig, build
from protea.nn.auxiliary import auxiliary_losses
from protea.nn.context import plain_context


@pytest.mark.slow
def test_patches_begin_where_words_do(shared_data, evidence):
    """The entropy model of a BLT, alone, for half a minute on Shakespeare."""
    data = torch.frombuffer(bytearray((shared_data / "text" / "tinyshakespeare.txt").read_bytes()), dtype=torch.uint8)
    train, held_out = data[:1_000_000].long(), data[1_000_000:].long()
    patcher = build(BLTConfig(patcher=(2, 64, 2, 2, 128), buckets=16, patch=4.5), 256, 256).patcher.train()
    optimizer = torch.optim.AdamW([p for p in patcher.parameters() if p.requires_grad], 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 400)
    noise = torch.Generator().manual_seed(0)
    positions = torch.arange(128)
    for _ in range(400):
        x = train[torch.randint(0, len(train) - 128, (12, 1), generator=noise) + positions]
        with auxiliary_losses() as terms:
            patcher(x, plain_context(128), positions.expand_as(x))
        optimizer.zero_grad()
        terms[0][1].backward()
        nn.utils.clip_grad_norm_(patcher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    patcher.eval()
    x = held_out[: 128 * 200].reshape(200, 128)
    with torch.no_grad():
        starts = patcher(x, plain_context(128), positions.expand_as(x))[0]
    letter = ((x >= 65) & (x <= 90)) | ((x >= 97) & (x <= 122))
    word = torch.zeros_like(letter)
    word[:, 1:] = letter[:, 1:] & ~letter[:, :-1] & (x[:, :-1] != 39)  # after an apostrophe no word begins
    starts, word = starts[:, 8:], word[:, 8:]  # texts cut anywhere begin with a forced patch
    base = word.float().mean().item()
    share = word[starts].float().mean().item()
    evidence(
        id="AR-44", system="Entropy patches", claim=f"share of patches that begin a word (of all bytes: {base:.2f})",
        reference="word boundaries of held-out Shakespeare", reached=share, tolerance=0.6, at_least=True,
    )  # fmt: skip
    evidence(
        id="AR-44", system="Entropy patches", claim="mean patch size less the 4.5 asked for, held-out text",
        reference="calibration", reached=abs(1 / starts.float().mean().item() - 4.5), tolerance=0.7, unit="bytes",
    )  # fmt: skip


def bits_per_byte(net: nn.Module, data: torch.Tensor, operations: float) -> float:
    """Of held-out text, after learning for so many floating-point operations (matrix products, backwards too)."""
    train, held_out, t = data[:1_000_000], data[1_000_000:], torch.arange(129)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    noise, spent, step, each = torch.Generator().manual_seed(0), 0.0, 0, 0
    while spent < operations:
        x = train[torch.randint(0, len(train) - 129, (12, 1), generator=noise) + t]
        share = spent / operations
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, share / 0.05 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * share))
        optimizer.zero_grad()
        with FlopCounterMode(display=False) as count, auxiliary_losses() as terms:
            loss = nn.functional.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
            sum((mean for _, mean in terms), loss).backward()
        each = count.get_total_flops()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        spent, step = spent + each, step + 1
    net.eval()
    x = held_out[: 129 * 200].reshape(200, 129)
    with torch.no_grad():
        nats = [nn.functional.cross_entropy(net(p[:, :-1]).flatten(0, 1), p[:, 1:].flatten()) for p in x.split(50)]
    return torch.stack(nats).mean().item() / math.log(2)


@pytest.mark.slow
def test_patches_are_worth_their_operations(shared_data, evidence):
    """Against a byte-level Llama of the latent transformer's size, at the same operations, the patcher's among them."""
    data = torch.frombuffer(bytearray((shared_data / "text" / "tinyshakespeare.txt").read_bytes()), dtype=torch.uint8)
    local = (64, 2, 2, 128)
    config = BLTConfig((1, *local), (4, 128, 4, 4, 352), (2, *local), (1, *local), 128, buckets=4096)
    torch.manual_seed(0)
    ours = bits_per_byte(build(config, 256, 256).train(), data.long(), 4e11)
    torch.manual_seed(0)
    peer = bits_per_byte(llama.build(llama.LlamaConfig(4, 128, 4, 4, 352, 128), 256, 256).train(), data.long(), 4e11)
    evidence(
        id="AR-43", system="Byte latent transformer", claim="held-out bits per byte after 4e11 operations, Shakespeare",
        reference=f"byte-level Llama: {peer:.2f}", reached=ours, tolerance=peer, unit="bits per byte",
    )  # fmt: skip
