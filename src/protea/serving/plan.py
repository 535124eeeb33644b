"""A decoder as a list of fused operations for `kernels/decoder.cpp`: one call computes a token of each of many texts.

The plan points at the model's own weights: nothing is copied, and weights changed in place are seen at once. What it
does not know it refuses (`Unsupported`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protea.kernels.pages import large_pages
from protea.models.autoregressive.decoder import Decoder
from protea.nn.attention import GQA
from protea.nn.block import Block, Branch
from protea.nn.branches import Parallel, PostNorm
from protea.nn.mamba import Mamba
from protea.nn.mamba2 import Mamba2
from protea.nn.mla import MLA
from protea.nn.mlp import MLP
from protea.nn.mlp_gated import GatedMLP
from protea.nn.moe import MoE
from protea.nn.position import RoPE
from protea.nn.tokens import TokenEmbedding
from protea.serving.blocks import Blocks, Text, Window
from protea.serving.fuse import (
    ADD,
    EMBED,
    GATHER,
    LINEAR,
    NORM,
    SOFTCAP,
    Unsupported,
    finish_facts,
    gated,
    gqa,
    norm_facts,
    only,
    parallel,
    plain,
    positions_table,
)  # fmt: skip
from protea.serving.fuse_experts import moe
from protea.serving.fuse_latent import latent
from protea.serving.fuse_states import mamba, mamba2
from protea.serving.library import Op, Step, library, reason

MIXERS: dict[type, Callable[..., None]] = {
    GQA: gqa, GatedMLP: gated, MLP: plain, Parallel: parallel, MLA: latent, MoE: moe, Mamba: mamba, Mamba2: mamba2
}  # fmt: skip


class Plan:
    """The operations of one decoder over one paged memory.

    Args:
        net: float32, on the CPU.
        blocks: where keys and values lie.
        rows: most tokens of one call.

    Raises:
        Unsupported: there is no compiler, or the decoder has a part without a fused form.
    """

    def __init__(self, net: Decoder, blocks: Blocks, rows: int) -> None:
        self.lib = library()
        if self.lib is None:
            raise Unsupported(reason())
        if any(p.dtype != torch.float32 or p.device.type != "cpu" or not p.is_contiguous() for p in net.parameters()):
            raise Unsupported("its weights are not contiguous float32 on the CPU")
        self.blocks, self.rows, self.kept, self.ops = blocks, rows, list[Tensor](), list[Op]()
        self.tables: dict[Window, np.ndarray] = {}
        self.buffers: dict[str, Tensor] = {}
        self.rotary: list[tuple[RoPE, tuple[Tensor, Tensor]]] = []  # cos and sin of every position
        self.vocabulary, self.d = net.outputs, net.embed.weight.shape[1]
        self._most, self._state = blocks.longest + 64, 0
        self._states = np.zeros((2, rows), dtype=np.int64)  # addresses of the rows' states, before and after
        self._compile(net)
        large_pages(net.parameters())
        large_pages((part for parts in blocks.store.values() for part in parts), now=False)
        self._ops = (Op * len(self.ops))(*self.ops)
        self._next = np.zeros(len(self.ops), dtype=np.int32)
        self._ids = np.zeros((3, rows), dtype=np.int32)
        self._stride = -(-self._most // 16) * 16
        self._scores = torch.empty(torch.get_num_threads(), self._stride)
        ids, states = self._ids.ctypes.data, self._states.ctypes.data
        self._step = Step(
            n_ops=len(self.ops), threads=len(self._scores), tokens=ids, slots=ids + 4 * rows, wanted=ids + 8 * rows,
            ops=ctypes.addressof(self._ops), next=self._next.ctypes.data, scores=self._scores.data_ptr(),
            scores_stride=self._stride, before=states, after=states + 8 * rows,
        )  # fmt: skip

    # ------------------------------------------------------------ building

    def buffer(self, name: str, width: int) -> Tensor:
        """(rows, width) floats shared by all that ask for the name."""
        if name not in self.buffers or self.buffers[name].shape[1] < width:
            assert name not in self.buffers, name
            self.buffers[name] = torch.zeros(self.rows, width)
        return self.buffers[name]

    def scratch(self, n: int) -> None:
        """Have n floats for each thread to work in."""
        self._most = max(self._most, n)

    def state(self, n: int) -> int:
        """Where in the states of a text n floats more lie."""
        self._state += -(-n // 16) * 16
        return self._state - -(-n // 16) * 16

    @staticmethod
    def portion(n: int) -> int:
        """How many of n rows of weights a thread takes at once (a multiple of 8, at most 128)."""
        return min(128, max(8, n // (2 * torch.get_num_threads()) // 8 * 8))

    def emit(
        self, kind: int, n: Sequence[int] = (), f: Sequence[float] = (), p: Sequence[Tensor | int | None] = (),
        wanted: bool = False,
    ) -> None:  # fmt: skip
        """Append an operation; tensors are kept alive."""
        op = Op(kind=kind, wanted=int(wanted))
        op.n[: len(n)], op.f[: len(f)] = list(n), list(f)
        for i, x in enumerate(p):
            if isinstance(x, Tensor):
                self.kept.append(x)
                op.p[i] = x.data_ptr()
            else:
                op.p[i] = x
        self.ops.append(op)

    def linear(
        self, x: Tensor, y: Tensor, parts: Sequence[nn.Linear], add: bool = False, act: int = -1, kind: int = LINEAR,
        wanted: bool = False,
    ) -> None:  # fmt: skip
        """y = W x + b of up to three layers side by side; or y += W x; or y = act(W_1 x) * W_2 x (kind GLU)."""
        for part in parts:
            only(part, nn.Linear, "weight", "bias", "in_features", "out_features")
        self.product(x, y, [p.weight for p in parts], [p.bias for p in parts], add, act, kind, wanted)

    def product(
        self, x: Tensor, y: Tensor, w: Sequence[Tensor], b: Sequence[Tensor | None], add: bool = False, act: int = -1,
        kind: int = LINEAR, wanted: bool = False,
    ) -> None:  # fmt: skip
        if x.shape[1] != w[0].shape[1]:
            raise Unsupported(f"a product of {x.shape[1]} entries by weights of {w[0].shape[1]}")
        sizes = [len(part) for part in w]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        pad = [0] * (3 - len(w))
        width, portion = y.stride(0), self.portion(sum(sizes))
        n = [w[0].shape[1], len(w), *sizes, *pad, *starts, *pad, width, int(add), act, portion, x.stride(0)]
        nothing = [None] * (3 - len(w))
        shift = [None] * (4 - len(w)) if kind == LINEAR else [None] * 2
        self.emit(kind, n, (), [x, y, *w, *shift, *b, *nothing], wanted)

    def norm(self, module: Any, x: Tensor, y: Tensor, wanted: bool = False) -> None:
        g, b, eps, plus, center = norm_facts(module)
        self.emit(NORM, (x.shape[1], int(center), x.stride(0)), (eps, plus), (x, y, g, b), wanted)

    def pointers(self, window: Window) -> int:
        """Address of the array of the rows' tables of one kind."""
        if window not in self.tables:
            self.tables[window] = np.zeros(self.rows, dtype=np.int64)
        return self.tables[window].ctypes.data

    def _compile(self, net: Decoder) -> None:
        only(net, Decoder, "embed", "blocks", "norm", "outputs", "head", "finish", "ahead")
        x, e = self.buffer("x", self.d), net.embed
        only(e, TokenEmbedding, "weight", "scale", "position")
        self.emit(EMBED, (self.d,), (e.scale,), (e.weight, x, positions_table(e.position, self.blocks.longest)))
        blocks: Any = net.blocks
        for layer, block in enumerate(blocks):
            only(block, Block, "branches")
            for branch in block.branches:
                self._branch(branch, x, layer)
        last, h, logits = self.buffer("last", self.d), self.buffer("hidden", self.d), self.buffer("logits", net.outputs)
        plain = type(net.norm) is nn.Identity
        self.emit(GATHER, (self.d,), (), (x, h if plain else last), wanted=True)
        if not plain:
            self.norm(net.norm, last, h, wanted=True)
        head = e.weight[: net.outputs] if net.head is None else net.head.weight
        bias = None if net.head is None else net.head.bias
        self.product(h, logits, [head], [bias], wanted=True)
        if net.finish is not None:
            scale, cap = finish_facts(net.finish)
            self.emit(SOFTCAP, (net.outputs,), (scale, cap), (None, logits), wanted=True)

    def _branch(self, branch: Any, x: Tensor, layer: int) -> None:
        if type(branch) is PostNorm:
            only(branch, PostNorm, "mixer", "norm")
            self.mix(branch.mixer, x, x, layer, add=True)
            return self.norm(branch.norm, x, x)
        only(branch, Branch, "norm", "mixer", "post")
        h = self.buffer("h", self.d)
        self.norm(branch.norm, x, h)
        if branch.post is None:
            return self.mix(branch.mixer, h, x, layer, add=True)
        y = self.buffer("y", self.d)
        self.mix(branch.mixer, h, y, layer, add=False)
        self.norm(branch.post, y, y)
        return self.emit(ADD, (self.d,), (), (y, x))

    def mix(self, mixer: Any, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
        """y = mixer(h), or y += mixer(h)."""
        if type(mixer) not in MIXERS:
            raise Unsupported(f"{type(mixer).__name__} has no fused form")
        MIXERS[type(mixer)](self, mixer, h, y, layer, add)

    # ------------------------------------------------------------ running

    def __call__(self, jobs: Sequence[tuple[Text, Sequence[int], int]]) -> list[tuple[Tensor, Tensor]]:
        """For each (text, ids, wanted): logits (wanted, V) and hidden streams (wanted, d) of its last `wanted` ids.

        The ids continue the texts, which remember them.
        """
        out: list[list[tuple[Tensor, Tensor]]] = [[] for _ in jobs]
        pending = [(j, i) for j, (_, ids, _) in enumerate(jobs) for i in range(len(ids))]
        for text, ids, _ in jobs:
            self.blocks.prepare(text, len(ids))
        new = [torch.empty(self._state) for _ in jobs] if self._state else []
        for begin in range(0, len(pending), self.rows):
            rows = pending[begin : begin + self.rows]
            for r, (j, i) in enumerate(rows if new else ()):
                known = new[j] if i else (jobs[j][0].states.get(0) or (None,))[0]
                self._states[:, r] = 0 if known is None else known.data_ptr(), new[j].data_ptr()
            wanted = [r for r, (j, i) in enumerate(rows) if i >= len(jobs[j][1]) - jobs[j][2]]
            logits, hidden = self._rows(jobs, rows, wanted)
            for at, r in enumerate(wanted):
                out[rows[r][0]].append((logits[at : at + 1], hidden[at : at + 1]))
        for text, ids, _ in jobs:
            self.blocks.advance(text, len(ids))
        for (text, ids, _), state in zip(jobs, new, strict=False):
            self.blocks.stateful = True
            if len(ids):
                text.states = {0: (state,)}
        one = [parts[0] if len(parts) == 1 else None for parts in out]
        return [
            first or (
                torch.cat([p[0] for p in parts]) if parts else torch.empty(0, self.vocabulary),
                torch.cat([p[1] for p in parts]) if parts else torch.empty(0, self.d),
            )
            for first, parts in zip(one, out, strict=True)
        ]  # fmt: skip

    def _rows(self, jobs: Sequence, rows: list[tuple[int, int]], wanted: list[int]) -> tuple[Tensor, Tensor]:
        n, ids = len(rows), self._ids
        ids[0, :n] = [jobs[j][1][i] for j, i in rows]
        ids[1, :n] = [jobs[j][0].length + i for j, i in rows]
        ids[2, : len(wanted)] = wanted
        for window, addresses in self.tables.items():
            at = [self.blocks.table(text, window).address for text, _, _ in jobs]
            addresses[:n] = [at[j] for j, _ in rows]
        step = self._step
        step.rows, step.n_wanted = n, len(wanted)
        assert self.lib is not None
        self.lib.protea_step(ctypes.byref(step))
        k = len(wanted)
        return self.buffers["logits"][:k].clone(), self.buffers["hidden"][:k].clone()
