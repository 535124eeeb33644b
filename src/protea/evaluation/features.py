r"""Declared features: the coordinates in which samples are compared. None needs a download.

| name | features |
|---|---|
| raw | `space.features`; numbers standardised by the training rows, NaN filled with their mean plus an indicator |
| whitened | raw, with the numbers rotated to unit covariance: sees a near-exact relation between columns |
| pca | raw, projected on the leading components of the training rows |
| random-conv | responses of a fixed random convolutional network at three scales, then pca (images) |
| classifier | last hidden layer of a network trained on the training labels |
| grams | unit vectors of hashed 6-grams (text): which passages a row holds |

All are fitted on training rows alone. The hash covers every fitted number, so that a figure says
exactly which coordinates it was measured in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protea.errors import NotSupported
from protea.rng import Streams, fold, permutation
from protea.space import Rows, Space

COMPONENTS = 64
BATCH = 512
GRAM, GRAM_BUCKETS = 6, 1024


@dataclass(frozen=True)
class Features:
    """A fitted map from canonical rows (N, *event) to float64 (N, F), with its name and the hash of what was fitted."""

    name: str
    hash: str
    of: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.of(x)

    def facts(self) -> dict[str, str]:
        """What a protocol records."""
        return {"features": self.name, "features_hash": self.hash}


def digest(*tensors: Tensor) -> str:
    """16 hex digits over values and shapes."""
    h = hashlib.sha256()
    for t in tensors:
        array = t.detach().cpu().contiguous().numpy()
        h.update(repr((array.shape, str(array.dtype))).encode() + array.tobytes())
    return h.hexdigest()[:16]


def digest_of(*parts: Features) -> str:
    """The hash of several features side by side."""
    return hashlib.sha256("+".join(p.hash for p in parts).encode()).hexdigest()[:16]


def raw(space: Space, train: Tensor) -> Features:
    """Standardised `space.features`. Columns of 0 and 1 (one-hot) keep their scale: rare levels stay small."""
    x = space.features(train).double()
    gone = x.isnan()
    mean = torch.nan_to_num(x.nanmean(0))
    std = torch.where(gone, mean, x).std(0, correction=0)
    binary = ((x == 0) | (x == 1) | gone).all(0)
    scale = torch.where(binary | (std < 1e-12), torch.ones_like(std), std)
    flags = gone.any(0).nonzero()[:, 0]

    def of(rows: Tensor) -> Tensor:
        v = space.features(rows).double()
        lost = v.isnan()
        return torch.cat(((torch.where(lost, mean, v) - mean) / scale, lost[:, flags].double()), 1)

    return Features("raw", digest(mean, scale, flags), of)


def whitened(space: Space, train: Tensor, floor: float = 1e-9) -> Features:
    """`raw` with the real and grid fields rotated and scaled to unit covariance.

    Directions of less than `floor` of the leading variance are dropped: they are rounding, not structure.
    """
    base = raw(space, train)
    x = base(train)
    plain = space.features(train[:2048])
    numbers = ~((plain == 0) | (plain == 1) | plain.isnan()).all(0)
    number = numbers.nonzero()[:, 0]
    if len(number) < 2:
        return Features("whitened", base.hash, base.of)
    other = torch.ones(x.shape[1], dtype=torch.bool)
    other[number] = False
    values, vectors = torch.linalg.eigh(torch.cov(x[:, number].mT))
    keep = values > floor * values[-1]
    rotation = vectors[:, keep] / values[keep].sqrt()

    def of(rows: Tensor) -> Tensor:
        v = base(rows)
        return torch.cat((v[:, number] @ rotation, v[:, other]), 1)

    return Features("whitened", digest(rotation, number), of)


def table_view(space: Space, train: Tensor) -> Features:
    """What a tree classifier should see of a table or vector: canonical columns with their NaN, and rotated numbers."""
    turned = whitened(space, train)
    numbers = sum(f.kind != "category" for f in space.fields)

    def of(rows: Tensor) -> Tensor:
        return torch.cat((rows.reshape(len(rows), -1).double(), turned(rows)[:, :numbers]), 1)

    return Features("columns + whitened", turned.hash, of)


def pca(base: Features, train: Tensor, components: int = COMPONENTS, name: str = "pca") -> Features:
    """The leading principal components of other features, divided by the root of the first variance."""
    x = base(train[:4096])
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((x - mean).mT))
    basis = vectors.flip(1)[:, :components] / values[-1].clamp_min(1e-12).sqrt()
    return Features(name, digest(mean, basis), lambda rows: (base(rows) - mean) @ basis)


def random_conv(space: Space, train: Tensor, seed: int = 0, width: int = 32) -> Features:
    """Three random convolutions (fixed weights); mean and spread of the responses over space after each; pca."""
    channels = space.event[0]
    sizes = [(width, channels), (width, width), (width, width)]
    weights = [
        Streams(fold(seed, "random-conv", i), out).normal(inside, 3, 3) / math.sqrt(9 * inside / 2)
        for i, (out, inside) in enumerate(sizes)
    ]

    def responses(rows: Tensor) -> Tensor:
        out = []
        for block in rows.split(BATCH):
            h, pooled = _pixels(space, block), []
            for i, w in enumerate(weights):
                h = F.relu(F.conv2d(h, w, padding=1))
                quarters = F.adaptive_avg_pool2d(h, 2).flatten(1)
                pooled += [quarters, h.flatten(2).std(2)]
                if i < 2 and min(h.shape[2:]) >= 4:
                    h = F.avg_pool2d(h, 2)
            out.append(torch.cat(pooled, 1).double())
        return torch.cat(out)

    x = responses(train[:2048])
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    base = Features("random-conv", digest(*weights, mean, std), lambda rows: (responses(rows) - mean) / std)
    return pca(base, train, name="random-conv")


def image_view(space: Space, train: Tensor, most_pixels: int = 1024) -> Features:
    """What a linear classifier should see of images: texture by random convolutions beside the pixels themselves."""
    texture, pixels = random_conv(space, train), raw(space, train)
    if math.prod(space.event) > most_pixels:
        pixels = pca(pixels, train)
    name = f"{texture.name} + {'pixels' if pixels.name == 'raw' else 'pca'}"
    return Features(name, digest_of(texture, pixels), lambda rows: torch.cat((texture(rows), pixels(rows)), 1))


class Probe(nn.Module):
    """A small classifier; `hidden` is its last hidden layer."""

    def __init__(self, space: Space, features: int, classes: int, width: int = 64) -> None:
        super().__init__()
        if space.kind == "image":
            c, h, w = space.event
            step = 2 if min(h, w) >= 16 else 1
            side = ((h + step - 1) // step + 1) // 2, ((w + step - 1) // step + 1) // 2
            self.body = nn.Sequential(
                nn.Conv2d(c, 16, 3, step, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
                nn.Linear(32 * side[0] * side[1], width), nn.ReLU(),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def hidden(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def train_probe(
    space: Space, x: Tensor, y: Tensor, classes: int, *, seed: int = 0, steps: int | None = None
) -> tuple[Probe, Callable[[Tensor], Tensor]]:
    """A classifier fitted to rows x with labels y, and the map from canonical rows to its input. Seconds on a core."""
    base = raw(space, x)
    steps = steps or min(400, max(100, 12 * len(x) // 128))  # a dozen epochs: confident on held-out rows as on these

    def prepare(rows: Tensor) -> Tensor:
        return _pixels(space, rows) if space.kind == "image" else base(rows).float()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "probe") % 2**31)
        probe = Probe(space, base(x[:1]).shape[1], classes)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    size = min(128, len(x))
    order, epoch, at = permutation(len(x), seed, "probe", 0), 0, 0
    with torch.enable_grad():
        for _ in range(steps):
            if at + size > len(x):
                epoch, at = epoch + 1, 0
                order = permutation(len(x), seed, "probe", epoch)
            index = order[at : at + size]
            at += size
            optimizer.zero_grad()
            F.cross_entropy(probe(prepare(x[index])), y[index], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return probe.eval().requires_grad_(False), prepare


def classifier(space: Space, train: Rows, seed: int = 0) -> Features:
    """Last hidden layer of a classifier of the training labels.

    Raises:
        NotSupported: the rows have no labels.
    """
    if train.y is None:
        raise NotSupported("Classifier features need labels, and these rows have none.", "Use random-conv or pca.")
    probe, prepare = train_probe(space, train.x, train.y, len(space.classes), seed=seed)

    def hidden(rows: Tensor) -> Tensor:
        return torch.cat([probe.hidden(prepare(block)).double() for block in rows.split(BATCH)])

    h = hidden(train.x[:4096])
    mean, std = h.mean(0), h.std(0)
    std = std.clamp_min(0.1 * float(std.max()))  # units that are nearly dead stay small
    return Features("classifier", digest(*probe.parameters(), mean, std), lambda rows: (hidden(rows) - mean) / std)


def grams(space: Space) -> Features:
    """Unit vectors of hashed 6-grams with random signs: the inner product counts shared passages of 6 tokens."""

    def of(rows: Tensor) -> Tensor:
        x = rows.to(torch.int64)
        n = min(GRAM, x.shape[1])
        code = torch.zeros_like(x[:, n - 1 :])
        for k in range(n):
            code = code * 1_000_003 + x[:, k : x.shape[1] - n + 1 + k] + 1
        mixed = code * 0x9E3779B97F4A7C1
        mixed = (mixed ^ (mixed >> 29)) * 0x2545F491
        sign = ((mixed >> 17) & 1).double() * 2 - 1
        out = torch.zeros(len(x), GRAM_BUCKETS, dtype=torch.float64).scatter_add_(1, (mixed >> 20) % GRAM_BUCKETS, sign)
        return out / out.norm(dim=1, keepdim=True).clamp_min(1e-12)

    return Features("grams", f"{GRAM}-{GRAM_BUCKETS}", of)


def _pixels(space: Space, x: Tensor) -> Tensor:
    levels = int(getattr(space, "levels", 256))
    return x.float() / (levels - 1) * 2 - 1
