"""Our language models against `transformers`: one call does for an architecture what all of them must pass.

    def test_llama(parity):
        parity(transformers.LlamaConfig(...), system="Llama", id="AR-20", note="grouped heads, scaled rope")

(`parity` and `hf`, this module, are fixtures of conftest.py.)

Random weights with gains and biases perturbed; the folder that transformers writes is opened by us, ours by
transformers. Logits agree to 1e-4 (relative to the largest) for a prefill, for decoding with a cache token by
token and in chunks, and for rows padded on the left; tensors come back bit for bit.
"""

from __future__ import annotations

import inspect
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protea.interop.huggingface import from_pretrained, save_pretrained
from protea.models.autoregressive.language import LanguageModel

TOLERANCE = 1e-4


def random_model(config: Any, seed: int = 0, spread: float = 1.0) -> Any:
    """A transformers model of random weights in evaluation mode; gains and biases differ from their initial values."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:  # transformers' 0.02 would leave every softmax flat
                fan_in = p.shape[0] if "Conv1D" in type(_owner(model, p)).__name__ else p.shape[-1]
                embedding = isinstance(_owner(model, p), torch.nn.Embedding)
                p.copy_(torch.randn_like(p) * (1.0 if embedding else spread * fan_in**-0.5))
            else:
                p.add_(0.3 * torch.randn_like(p))
    return model


def _owner(model: Any, p: Tensor) -> Any:
    return next(m for m in model.modules() for own in m._parameters.values() if own is p)


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def theirs_padded(model: Any, tokens: Tensor, pad: Tensor) -> Tensor:
    """Logits of rows with `pad` tokens of padding on the left."""
    mask = (torch.arange(tokens.shape[1]) >= pad[:, None]).long()
    accepts = "position_ids" in inspect.signature(model.forward).parameters
    more = {"position_ids": (torch.arange(tokens.shape[1]) - pad[:, None]).clamp_min(0)} if accepts else {}
    return model(tokens, attention_mask=mask, **more).logits


def chunked(model: LanguageModel, tokens: Tensor, sizes: list[int], pad: Tensor | None = None) -> Tensor:
    cache = model.new_cache(len(tokens), tokens.shape[1], **({} if pad is None else {"pad": pad}))
    parts, start = [], 0
    for size in sizes:
        parts.append(model.logits(tokens[:, start : start + size], cache))
        start += size
    return torch.cat(parts, 1)


@torch.no_grad()
def check(
    config: Any, folder: Path, evidence: Callable[..., None], *, id: str, system: str, note: str, length: int = 20,
    prepare: Callable[[Any], None] | None = None, tolerance: float = TOLERANCE, seed: int = 0, padded: bool = True,
) -> LanguageModel:  # fmt: skip
    """Everything of the module's docstring for one config; returns our model.

    Args:
        config: of transformers; small.
        folder: an empty one.
        evidence: the fixture.
        id, system, note: of the evidence rows; the note says which options this config covers.
        length: tokens of the texts; more than a window, where there is one.
        prepare: called on their model before it is saved (weights that need care).
        tolerance: relative, of logits.
        padded: whether transformers itself gets padded rows right (its rows alone are compared otherwise).
    """
    theirs = random_model(config, seed)
    if prepare is not None:
        prepare(theirs)
    theirs.save_pretrained(folder / "theirs")
    ours = from_pretrained(folder / "theirs")
    reference = f"transformers.{type(theirs).__name__}"
    vocabulary = theirs.get_input_embeddings().weight.shape[0]
    x = torch.randint(0, vocabulary, (3, length), generator=torch.Generator().manual_seed(seed))

    def record(claim: str, reached: float, limit: float = tolerance) -> None:
        evidence(
            id=id, system=system, claim=f"logits, {claim} ({note})", reference=reference, reached=reached,
            tolerance=limit, unit="relative",
        )  # fmt: skip

    want = theirs(x, use_cache=False).logits
    assert want.std() > 0.05 and ours.logits(x).shape == want.shape
    record("prefill", relative(ours.logits(x), want))
    record("cached decode, token by token", relative(chunked(ours, x, [1] * length), want))
    record("cached decode, in chunks", relative(chunked(ours, x, [length // 2, 1, length - length // 2 - 4, 3]), want))

    pad = torch.tensor([0, 3, length // 2])
    if padded:
        want_padded = theirs_padded(theirs, x, pad)
    else:
        want_padded = torch.zeros_like(want)
        for row, n in enumerate(pad.tolist()):
            want_padded[row, n:] = theirs(x[row : row + 1, n:], use_cache=False).logits[0]
    real = torch.arange(length) >= pad[:, None]
    record("left-padded batch", relative(ours.logits(x, pad=pad)[real], want_padded[real]))
    cached = chunked(ours, x, [length - 5, *[1] * 5], pad)
    record("left-padded batch, cached decode", relative(cached[real], want_padded[real]))

    save_pretrained(ours, folder / "ours", part_size=sum(p.nbytes for p in ours.parameters()) // 3)
    transformers = pytest.importorskip("transformers")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    back = again.eval().state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back[name]), name
    record("after a round trip through our folder", relative(again(x, use_cache=False).logits, want), 1e-6)
    return ours
