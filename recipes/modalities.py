"""One decoder for text, pictures and sound: whatever is a sequence of symbols is a language to it.

    python -m recipes.modalities --text CORPUS.txt --pictures mnist.npz --audio digits.npz --steps 300

trains the same Llama on bytes of text, on pictures of 14 x 14 in raster order with 16 grey levels, and on speech at
8 kHz as mu-law bytes (ITU-T G.711: 256 levels, logarithmic), and prints held-out bits a symbol beside the entropy of
single symbols: a model that has learnt nothing of order stays at that.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.language import LanguageModel
from protea.space import Rows
from protea.spaces import Tokens
from protea.training import Budget, fit

LENGTH = 128


def mu_law(wave: Tensor, mu: int = 255) -> Tensor:
    """Samples in -1 .. 1 to 0 .. mu: loud ones coarsely, quiet ones finely.

    >>> mu_law(torch.tensor([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    squashed = wave.sign() * torch.log1p(mu * wave.abs()) / math.log1p(mu)
    return ((squashed + 1) / 2 * mu + 0.5).long().clamp(0, mu)


def text(path: Path) -> Tensor:
    """(N, LENGTH) bytes."""
    found = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    return found[: len(found) // LENGTH * LENGTH].reshape(-1, LENGTH)


def pictures(path: Path, levels: int = 16) -> Tensor:
    """(N, 196) grey levels of pictures shrunk by two, row by row."""
    with np.load(path, allow_pickle=False) as held:
        name = next(k for k in held if held[k].ndim >= 3)
        images = torch.from_numpy(held[name]).float()
    small = nn.functional.avg_pool2d(images.reshape(len(images), 1, 28, 28), 2)
    return (small / small.max() * (levels - 1)).round().long().flatten(1)


def audio(path: Path) -> Tensor:
    """(N, LENGTH) mu-law bytes of recordings, cut."""
    with np.load(path, allow_pickle=False) as held:
        name = max(held, key=lambda k: held[k].size)
        wave = torch.from_numpy(held[name].astype(np.float32)).flatten()
    coded = mu_law(wave / wave.abs().max())
    return coded[: len(coded) // LENGTH * LENGTH].reshape(-1, LENGTH)


def unigram(train: Tensor, held_out: Tensor) -> float:
    """Bits a symbol of symbols drawn one by one with the frequencies of the training rows (Laplace)."""
    size = int(max(train.max(), held_out.max())) + 1
    counts = torch.bincount(train.flatten(), minlength=size).double() + 1
    return float(-(counts / counts.sum()).log2()[held_out.flatten()].mean())


@torch.no_grad()
def bits(model: LanguageModel, x: Tensor) -> float:
    return float(-sum(model.log_prob(part).sum() for part in x.split(64)) / x.numel() / math.log(2))


def learn(x: Tensor, steps: int, *, layers: int = 3, width: int = 64, seed: int = 0) -> tuple[float, float]:
    """Held-out bits a symbol of the decoder, and of single symbols. The last tenth of the rows is held out."""
    held = len(x) - min(len(x) // 10, 400)
    train, test = x[:held], x[held:]
    space = Tokens(x.shape[1], int(x.max()) + 1, "ids")
    torch.manual_seed(seed)
    model = language_model("llama", space, ARCHITECTURES["llama"].scaled(layers, width, x.shape[1]))
    fit(
        model,
        Rows(train, None, torch.arange(len(train))),
        budget=Budget(steps=steps),
        seed=seed,
        batch_size=32,
        judge=None,
        progress=None,
    )
    return bits(model, test), unigram(train, test)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"text": text, "pictures": pictures, "audio": audio}
    for kind in kinds:
        ask.add_argument(f"--{kind}", type=Path)
    ask.add_argument("--steps", type=int, default=300)
    a = ask.parse_args()
    print("| sequence | bits a symbol | single symbols |\n|---|---|---|")
    for kind, read in kinds.items():
        if path := getattr(a, kind):
            ours, alone = learn(read(path), a.steps)
            print(f"| {kind} | {ours:.3f} | {alone:.3f} |", flush=True)


if __name__ == "__main__":
    main()
