"""Entropy patches of real text: where they begin, and that their mean size is the one asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
