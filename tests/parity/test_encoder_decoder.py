"""The first transformer against torch.nn.Transformer with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protea.nn.cache import Cache
from protea.nn.encoder_decoder import vaswani

D, H, FF, S, T = 24, 4, 40, 9, 7


def twins(layers=2):
    ours = vaswani(11, 13, n_layers=layers, d_model=D, n_heads=H, d_ff=FF).eval()
    theirs = nn.Transformer(D, H, layers, layers, FF, dropout=0.0, batch_first=True).eval()
    theirs.encoder.use_nested_tensor = False  # a warning less
    theirs.encoder.norm = theirs.decoder.norm = None  # the paper has none after the last block
    with torch.no_grad():
        for p in (*ours.parameters(), *theirs.parameters()):
            p.add_(0.3 * torch.randn_like(p) if p.ndim == 1 else 0.5 * p)

    def attend(to, of):
        w, b = of.in_proj_weight.chunk(3), of.in_proj_bias.chunk(3)
        for part, weight, bias in zip((to.q, to.k, to.v), w, b, strict=True):
            part.load_state_dict({"weight": weight, "bias": bias})
        to.o.load_state_dict(of.out_proj.state_dict())

    for mine, block in zip((*ours.encoder, *ours.decoder), (*theirs.encoder.layers, *theirs.decoder.layers)):
        attend(mine.branches[0].mixer, block.self_attn)
        if len(mine.branches) == 3:
            attend(mine.branches[1].mixer, block.multihead_attn)
        mine.branches[-1].mixer.up.load_state_dict(block.linear1.state_dict())
        mine.branches[-1].mixer.down.load_state_dict(block.linear2.state_dict())
        for i, branch in enumerate(mine.branches):
            branch.norm.load_state_dict(getattr(block, f"norm{i + 1}").state_dict())
    return ours, theirs


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_logits(padded, evidence):
    ours, theirs = twins()
    source, target = torch.randint(0, 11, (3, S)), torch.randint(0, 13, (3, T))
    valid = torch.arange(S) < torch.tensor([[S], [4], [6]]) if padded else None
    wave = ours.embed.position
    pairs = ((ours.embed, source), (ours.embed_target, target))
    at = [e.weight[x] * D**0.5 + wave(torch.arange(x.shape[1])) for e, x in pairs]
    missing = None if valid is None else ~valid
    x = theirs(
        *at, tgt_mask=nn.Transformer.generate_square_subsequent_mask(T), tgt_is_causal=True,
        src_key_padding_mask=missing, memory_key_padding_mask=missing,
    )  # fmt: skip
    want = ours.head(x)
    cache = Cache(T)
    encoded = ours.encode(source, valid)
    steps = torch.cat([ours.decode(encoded, target[:, i : i + 1], cache) for i in range(T)], 1)
    for claim, got in (("logits", ours(source, target, valid)), ("cached decode, token by token", steps)):
        evidence(
            id="AR-06", system="Encoder-decoder transformer", reference="torch.nn.Transformer", tolerance=1e-5,
            claim=f"{claim}{', padded sources' if padded else ''}", unit="relative",
            reached=((got - want).abs().max() / want.abs().max()).item(),
        )  # fmt: skip


def test_a_small_one_learns_to_reverse():
    """Reversing five letters needs both halves: the decoder counts, the lookup fetches."""
    torch.manual_seed(1)
    net = vaswani(8, 9, n_layers=1, d_model=32, n_heads=2, d_ff=64)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = torch.randint(0, 8, (64, 5), generator=draw)
        y = x.flip(1)
        begun = torch.cat((torch.full((64, 1), 8), y[:, :-1]), 1)
        loss = nn.functional.cross_entropy(net(x, begun).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randint(0, 8, (200, 5), generator=draw)
    text, encoded = torch.full((200, 1), 8), net.encode(x)
    for _ in range(5):
        text = torch.cat((text, net.decode(encoded, text)[:, -1:].argmax(-1)), 1)
    assert (text[:, 1:] == x.flip(1)).float().mean() > 0.98
