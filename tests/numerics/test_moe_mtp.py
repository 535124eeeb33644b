"""Multi-token prediction: its loss against a plain sum, its memory while drafting, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.nn.attention import GQA
from protea.nn.auxiliary import auxiliary_losses
from protea.nn.block import Block, Branch
from protea.nn.context import plain_context
from protea.nn.mlp_gated import SwiGLU
from protea.nn.mtp import Ahead, Drafter, MultiToken
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.nn.tokens import TokenEmbedding

V, D = 23, 16


def net(depths: int = 3) -> Decoder:
    rope = RoPE(rope_frequencies(8))

    def block() -> Block:
        return Block([Branch(RMSNorm(D), GQA(D, 2, 1, position=rope)), Branch(RMSNorm(D), SwiGLU(D, 24))])

    modules = [Ahead(D, block(), (RMSNorm(D), RMSNorm(D), RMSNorm(D))) for _ in range(depths)]
    ahead = MultiToken(modules, 0.3)
    made = init_decoder(Decoder(TokenEmbedding(V + 1, D), [block(), block()], RMSNorm(D), V, ahead=ahead))
    made.head.weight.data.mul_(10)
    return made


def test_loss_is_the_mean_of_further_tokens(evidence):
    made, u = net(2).train(), torch.randint(0, V, (3, 10))
    with auxiliary_losses() as terms:
        made(u)
    h = made.hidden(u, plain_context(10))
    losses = []
    for k, module in enumerate(made.ahead.depths, 1):
        rows = [
            module(h[b : b + 1, : 10 - k], made.embed(u[b : b + 1, k:], plain_context(10 - k)), plain_context(10 - k))
            for b in range(3)
        ]
        h = torch.cat(rows)
        losses.append(cross_entropy(made.read(h)[:, :-1].flatten(0, 1), u[:, k + 1 :].flatten()).item())
    ((name, got),) = terms
    assert name == "MultiToken"
    evidence(id="AR-33", system="Multi-token prediction", claim="loss of 2 modules", reference="row by row",
             reached=abs(got.item() - 0.3 * sum(losses) / 2), tolerance=1e-5)  # fmt: skip
    assert made.eval()(u).shape == (3, 10, V)
    with auxiliary_losses() as terms:
        made(u)
    assert terms == []


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_of_several_texts_lose_what_the_texts_lose_alone(layout):
    made, u = net(1).train(), torch.randint(0, V, (1, 12))
    parts = [u[:, :5], u[:, 5:]] if layout == "packed" else [u[:, 5:]]
    options = {"documents": torch.tensor([[0] * 5 + [1] * 7])} if layout == "packed" else {"pad": torch.tensor([5])}
    total, n = 0.0, 0
    for part in parts:
        with auxiliary_losses() as terms:
            made(part)
        total, n = total + terms[0][1] * (part.shape[1] - 2), n + part.shape[1] - 2
    with auxiliary_losses() as terms:
        made(u, **options)
    assert torch.allclose(terms[0][1], total / n, atol=1e-5)


@pytest.mark.parametrize("cuts", [[9], [1, 1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 4, 2], [5, 3, 1], [1, 8]])
@torch.no_grad()
def test_drafts_with_a_memory_equal_those_without(cuts, evidence):
    """After every step, for texts whose next tokens are not what was drafted."""
    made = net(3).eval()
    u = torch.randint(0, V, (2, 10))
    h = made.hidden(u, plain_context(10))
    drafter, n, worst = Drafter(made, made.ahead, 20), 0, 0.0
    for cut in cuts:
        ids, logits = drafter.drafts(h[:, n : n + cut], u[:, n + 1 : n + cut + 1])
        n += cut
        text, stream = u[:, : n + 1], h[:, :n]
        for k, module in enumerate(made.ahead.depths):
            ctx = plain_context(n)
            stream = module(stream, made.embed(text[:, k + 1 :], ctx), ctx)
            want = made.read(stream[:, -1])
            worst = max(worst, (want - logits[:, k]).abs().max().item())
            text = torch.cat((text, want.argmax(-1)[:, None]), 1)
        assert torch.equal(text[:, -3:], ids)
    evidence(id="AR-33", system="Multi-token prediction", claim=f"drafts of 3 modules, text cut {cuts}",
             reference="without a memory", reached=worst, tolerance=1e-5, unit="max abs")  # fmt: skip


def test_a_module_learns_the_token_after_next():
    torch.manual_seed(0)
    made = net(1).train()
    rows = (torch.arange(16)[None] + torch.arange(V)[:, None]) % V  # every text counts up
    optimizer, first = torch.optim.Adam(made.parameters(), 1e-2), None
    for _ in range(60):
        with auxiliary_losses() as terms:
            loss = cross_entropy(made(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        total = loss + terms[0][1]
        first = first or terms[0][1].item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert terms[0][1].item() < 0.1 * first
    h = made.eval().hidden(rows, plain_context(16))
    ids, _ = Drafter(made, made.ahead, 20).drafts(h, (rows + 1) % V)
    assert (ids[:, 0] == (rows[:, -1] + 2) % V).float().mean() > 0.9
