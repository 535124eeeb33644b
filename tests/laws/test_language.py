"""The laws of a language model, tried on every line of `ARCHITECTURES` at two layers of 16 entries.

Positions, masks and memories are where architectures differ and where errors hide: a token that sees the future, a
window off by one, padding that leaks into a state, a document that sees its neighbour.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.language import LanguageModel
from protea.nn.auxiliary import auxiliary_losses
from protea.nn.context import plain_context
from protea.spaces import Tokens

T, V = 20, 7  # longer than the windows of `scaled`
# What no gradient can reach, and why.
IDLE = {
    # q . (k + b) adds the same to every score of a query, unless b is turned with its position
    "gpt1": ("mixer.k.bias",), "gpt2": ("mixer.k.bias",), "gpt3": ("mixer.k.bias",),
}  # fmt: skip

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def perturbed(model: LanguageModel) -> LanguageModel:
    """Gains and biases away from ones and zeros, and sharper attention."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator) if p.ndim < 2 else 0.5 * p)
    return model.eval()


@cache
def small(name: str, length: int = T, vocabulary: int = V) -> LanguageModel:
    """Shared: copy before changing it."""
    torch.manual_seed(0)
    space = Tokens(length, vocabulary=vocabulary, tokenizer="ids")
    return perturbed(language_model(name, space, ARCHITECTURES[name].scaled(2, 16, length)))


def texts(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, V + 1, (rows, T), generator=torch.Generator().manual_seed(seed))


def gap(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def in_chunks(model: LanguageModel, x: Tensor, sizes: list[int], pad: Tensor | None = None) -> Tensor:
    memory = model.new_cache(len(x), x.shape[1], **({} if pad is None else {"pad": pad}))
    return torch.cat([model.logits(part, memory) for part in x.split(sizes, 1)], 1)


@every_architecture
@torch.no_grad()
def test_changing_a_token_changes_only_what_follows(name, evidence):
    model, x = small(name), texts(2)
    before, leak = model.logits(x), 0.0
    for j in range(T):
        changed = x.clone()
        changed[:, j] = (x[:, j] + 1) % V
        after = model.logits(changed)
        leak = max(leak, gap(after[:, :j], before[:, :j]) if j else 0.0)
        assert (after[:, j] - before[:, j]).abs().amax(-1).min() > 1e-4, f"position {j} does not see its own token"
    evidence(
        id="AR-01", system=name, claim="change of earlier logits when a token changes", reference="causality",
        reached=leak, tolerance=1e-6, unit="relative",
    )  # fmt: skip


@every_architecture
@torch.no_grad()
def test_a_text_in_parts_is_the_text_at_once(name, evidence):
    """Every split in two, one by one, and chunks that wrap a rolling buffer."""
    model, x = small(name), texts(3)
    want, worst = model.logits(x), 0.0
    splits = [[k, T - k] for k in range(1, T)] + [[1] * T, [3] * 6 + [2], [7, 1, 1, 6, 5], [9, 1, 9, 1]]
    for sizes in splits:
        worst = max(worst, gap(in_chunks(model, x, sizes), want))
    evidence(
        id="AR-05", system=name, claim=f"cached logits, {len(splits)} splits of {T} tokens", reference="uncached",
        reached=worst, tolerance=1e-5, unit="relative",
    )  # fmt: skip


@every_architecture
@torch.no_grad()
def test_a_padded_row_is_the_row_alone(name, evidence):
    model, x, pad = small(name), texts(4), torch.tensor([0, 1, 9, T - 1])
    at_once, worst = model.logits(x, pad=pad), 0.0
    ways = [at_once, in_chunks(model, x, [T - 3, 1, 1, 1], pad), in_chunks(model, x, [6, 6, 6, 2], pad)]
    for row, n in enumerate(pad.tolist()):
        alone = model.logits(x[row : row + 1, n:])[0]
        worst = max(worst, *(gap(way[row, n:], alone) for way in ways))
    evidence(
        id="AR-05", system=name, claim="left-padded rows, with and without a cache", reference="each row alone",
        reached=worst, tolerance=1e-5, unit="relative",
    )  # fmt: skip


@every_architecture
@torch.no_grad()
def test_packed_documents_are_the_documents_apart(name, evidence):
    model, x, worst = small(name), texts(3), 0.0
    lengths = [[T], [5, 1, 14], [9, 11]]
    documents = torch.stack([torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in lengths])
    packed = model.logits(x, documents=documents)
    for row, n in enumerate(lengths):
        parts = torch.cat([model.logits(part[None])[0] for part in x[row].split(n)])
        worst = max(worst, gap(packed[row], parts))
    evidence(
        id="AR-04", system=name, claim="documents packed in a row", reference="each document alone", reached=worst,
        tolerance=1e-5, unit="relative",
    )  # fmt: skip


@every_architecture
@torch.no_grad()
def test_probabilities_of_all_texts_sum_to_one(name, evidence):
    every = torch.cartesian_prod(*[torch.arange(3)] * 5)
    total = small(name, 5, 3).log_prob(every).double().exp().sum().item()
    evidence(
        id="AR-01", system=name, claim="probabilities of all 243 texts", reference="sum to 1", reached=abs(total - 1),
        tolerance=1e-5, unit="abs",
    )  # fmt: skip


@every_architecture
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    space = Tokens(T, vocabulary=V, tokenizer="ids")
    model = perturbed(language_model(name, space, ARCHITECTURES[name].scaled(2, 16, T))).train()
    x = torch.randint(0, V, (16, T))
    with auxiliary_losses() as terms:  # as the learner does
        total = -model.log_prob(x).mean()
    sum((mean for _, mean in terms), total).backward()
    idle = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() < 1e-7)}
    assert {n for n in idle if not n.endswith(IDLE.get(name, ()) or ("-",))} == set()
    assert name not in IDLE or idle, "the exception is out of date"


@every_architecture
def test_a_size_means_what_it_says(name):
    """`scaled` keeps the width and the context it is given, and grows with both."""
    scaled = ARCHITECTURES[name].scaled
    assert scaled(2, 32, 40).context == 40 and scaled(2, 32, 40).d_model == 32

    def size(layers: int, width: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in ARCHITECTURES[name].build(scaled(layers, width, 16), 9, 8).parameters())

    assert size(2, 16) < size(4, 16) and size(2, 64) < size(2, 128)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_windows_see_as_far_as_their_layers_reach(layers, window, evidence):
    """L layers of a window w: the gradient of a logit reaches back L (w - 1) tokens, and no further."""
    from protea.models.autoregressive.mistral import MistralConfig, build

    net = build(MistralConfig(layers, 16, 2, 1, 24, 24, window=window), V, V)
    x = net.embed(texts(1) % V, plain_context(T)).detach().requires_grad_()
    net.stream(x, plain_context(T))[0, -1].sum().backward()
    assert x.grad is not None
    reached = int((x.grad[0].abs().amax(-1) > 0).sum())
    evidence(
        id="AR-19", system="Sliding windows", claim=f"receptive field of {layers} layers of window {window}",
        reference="L (w - 1) + 1", reached=abs(reached - (layers * (window - 1) + 1)), tolerance=0, unit="tokens",
    )  # fmt: skip


@torch.no_grad()
def test_shared_blocks_are_one(evidence):
    """MobileLLM-LS: twice the depth of a Llama at its parameters; what one use of a block learns, the other has."""
    from protea.models.autoregressive.llama import LlamaConfig
    from protea.models.autoregressive.llama import build as llama
    from protea.models.autoregressive.mobilellm import MobileLLMConfig, build

    shape = {"d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 24, "context": T, "tie": True}
    thin = build(MobileLLMConfig(n_layers=6, share=2, **shape), V, V)
    plain = llama(LlamaConfig(n_layers=3, **shape), V, V)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (thin, plain)]
    evidence(
        id="AR-39", system="MobileLLM-LS", claim="parameters of 6 layers in pairs less those of 3 layers",
        reference="Llama", reached=abs(sizes[0] - sizes[1]), tolerance=0, unit="parameters",
    )  # fmt: skip
    assert thin.blocks[0] is thin.blocks[1] and thin.blocks[1] is not thin.blocks[2]
    deep = llama(LlamaConfig(n_layers=6, **shape), V, V)
    deep.load_state_dict(thin.state_dict())
    assert torch.equal(deep(texts(2) % V), thin(texts(2) % V))
