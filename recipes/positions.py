"""How far positions carry: networks trained on texts of 128 bytes, judged on longer ones.

    python -m recipes.positions CORPUS.txt --steps 1500

trains the same small network once for each kind of position and prints bits per byte of held-out texts of 128, 256, 512
and 1,024 bytes. Rotary positions are judged as they were trained and with every scaling of `nn/rope.py` (no training at
the new length). Kinds:

    rope, alibi, nope, sinusoidal      rotary; distances off the scores; none; added sinusoids
    swa                                rotary, every layer sees a window
    rnope-swa                          rotary in three windowed layers, none in the fourth, which sees all (Cohere 2)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.nn.attention import GQA, ALiBi, alibi_slopes
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.position import Sinusoidal
from protea.nn.rope import make_rope
from protea.nn.tokens import TokenEmbedding

LENGTH = 128  # of training
WINDOW = 48


def attention(kind: str, layer: int, d: int, heads: int, rope: nn.Module) -> GQA:
    """One layer's attention of a kind of position."""
    last = layer % 4 == 3
    parts: dict[str, Any] = {
        "rope": {"position": rope},
        "alibi": {"kernel": ALiBi(alibi_slopes(heads))},
        "nope": {},
        "sinusoidal": {},
        "swa": {"position": rope, "window": WINDOW},
        "rnope-swa": {} if last else {"position": rope, "window": WINDOW},
    }
    return GQA(d, heads, heads, **parts[kind])


KINDS = ("rope", "swa", "rnope-swa", "alibi", "nope", "sinusoidal")
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic NTK": {"rope_type": "dynamic", "factor": 4.0},
    "YaRN": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH},
}


def network(kind: str, *, layers: int = 4, d: int = 64, heads: int = 4, vocabulary: int = 256) -> Decoder:
    """A small decoder of bytes."""
    rope = make_rope(d // heads, 10000.0)

    def block(i: int) -> Block:
        mixer = attention(kind, i, d, heads, rope)
        return Block([Branch(RMSNorm(d), mixer), Branch(RMSNorm(d), SwiGLU(d, 16 * round(d / 6)))])

    added = Sinusoidal(d) if kind == "sinusoidal" else None
    blocks = [block(i) for i in range(layers)]
    return init_decoder(Decoder(TokenEmbedding(vocabulary, d, position=added), blocks, RMSNorm(d), vocabulary))


def rescale(net: Decoder, scaling: Mapping[str, Any] | None) -> Decoder:
    """Give the network's rotary layers the frequencies of a scaling, in place."""
    for module in net.modules():
        if isinstance(module, GQA) and module.position is not None:
            module.position = make_rope(module.d_head, 10000.0, scaling, LENGTH)
    return net


def learn(net: Decoder, text: Tensor, steps: int, *, batch: int = 16, rate: float = 3e-3, seed: int = 0) -> None:
    """AdamW with a warm-up and a cosine, on blocks from anywhere in the text (M,)."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.05 * steps))
        optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        start = torch.randint(len(text) - LENGTH, (batch, 1), generator=draw)
        x = text[start + torch.arange(LENGTH + 1)]
        loss = nn.functional.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def bits(net: Decoder, text: Tensor, length: int) -> float:
    """Bits per byte of a held-out text (M,) cut into texts of `length` bytes."""
    x = text[: len(text) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    nats = [
        nn.functional.cross_entropy(net(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        for part in x.split(max(1, 8192 // length))
    ]
    return float(sum(nats)) / (len(x) * length * math.log(2))


def table(
    text: Tensor, held_out: Tensor, lengths: tuple[int, ...], *, kinds: tuple[str, ...] = KINDS, steps: int = 1500,
    seed: int = 0, show: Callable[[str], None] = print, **size: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Bits per byte at every length, by kind of position."""
    rows: dict[str, list[float]] = {}
    for kind in kinds:
        torch.manual_seed(seed)
        net = network(kind, **size)
        learn(net, text, steps, seed=seed)
        net.eval()
        rows[kind] = [bits(net, held_out, n) for n in lengths]
        show(f"{kind:22s}" + "".join(f"{b:9.3f}" for b in rows[kind]))
        for name, scaling in SCALINGS.items() if kind == "rope" else ():
            rescale(net, scaling)
            rows[f"rope, {name}"] = [bits(net, held_out, n) for n in lengths]
            show(f"{'rope, ' + name:22s}" + "".join(f"{b:9.3f}" for b in rows[f"rope, {name}"]))
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("corpus", type=Path)
    ask.add_argument("--steps", type=int, default=1500)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--out", type=Path, help="write the rows here, as JSON")
    a = ask.parse_args()
    text = torch.frombuffer(bytearray(a.corpus.read_bytes()), dtype=torch.uint8).long()
    cut, lengths = int(0.9 * len(text)), (128, 256, 512, 1024)
    print(f"{'bytes':22s}" + "".join(f"{n:9d}" for n in lengths))
    rows = table(text[:cut], text[cut:][:65536], lengths, steps=a.steps, seed=a.seed)
    if a.out:
        a.out.write_text(json.dumps({"corpus": a.corpus.name, "steps": a.steps, "lengths": lengths, "rows": rows}))


if __name__ == "__main__":
    main()
