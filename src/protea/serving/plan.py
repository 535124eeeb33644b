"""A decoder as a list of fused operations for `kernels.cpp`: one call computes a token of each of many texts.

The plan points at the model's own weights: nothing is copied, and weights changed in place are seen at once. What it
does not know it refuses (`Unsupported`), and so it does where a trial run disagrees with the model.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from protea.models.autoregressive.decoder import Decoder
from protea.nn.attention import GQA, ALiBi, SoftCap, sdpa
from protea.nn.block import Block, Branch
from protea.nn.mlp_gated import GatedMLP
from protea.nn.norm import RMSNorm
from protea.nn.position import LearnedPositions, RoPE, Sinusoidal, rotate, rotate_interleaved
from protea.serving.blocks import Blocks, Text, Window
from protea.serving.library import Op, Step, library, reason

EMBED, NORM, LINEAR, GLU, REMEMBER, ATTEND, ACTIVATE, ADD, GATHER, SOFTCAP = range(10)
ACTIVATIONS: dict[object, int] = {
    nn.functional.silu: 0, nn.functional.gelu: 2, nn.functional.relu: 3, nn.SiLU: 0, nn.ReLU: 3,
}  # fmt: skip


class Unsupported(Exception):
    """The decoder has a part that no fused operation computes."""


def only(module: nn.Module, kind: type, *known: str) -> None:
    """Refuse a module of another class, or one with parts beside the known ones."""
    if type(module) is not kind:
        raise Unsupported(f"{type(module).__name__} has no fused form")
    parts = {*module._parameters, *module._modules, *module._buffers}
    own = {name for name in vars(module) if not name.startswith("_") and name != "training"}
    if strange := {n for n in (parts | own) - set(known) if getattr(module, n) is not None}:
        raise Unsupported(f"{kind.__name__}.{sorted(strange)[0]} has no fused form")
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unsupported(f"{kind.__name__} has a hook")


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
        self.vocabulary, self.d = net.outputs, net.embed.weight.shape[1]
        self._compile(net)
        self._ops = (Op * len(self.ops))(*self.ops)
        self._next = np.zeros(len(self.ops), dtype=np.int32)
        self._ids = np.zeros((3, rows), dtype=np.int32)
        self._stride = blocks.longest + 64
        self._scores = torch.empty(torch.get_num_threads(), self._stride)

    # ------------------------------------------------------------ building

    def buffer(self, name: str, width: int) -> Tensor:
        """(rows, width) floats shared by all that ask for the name."""
        if name not in self.buffers or self.buffers[name].shape[1] < width:
            assert name not in self.buffers, name
            self.buffers[name] = torch.zeros(self.rows, width)
        return self.buffers[name]

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
        chunk = min(128, max(8, sum(sizes) // (2 * torch.get_num_threads()) // 8 * 8))
        n = [w[0].shape[1], len(w), *sizes, *pad, *starts, *pad, y.shape[1], int(add), act, chunk]
        nothing = [None] * (3 - len(w))
        shift = [None] * (4 - len(w)) if kind == LINEAR else [None] * 2
        self.emit(kind, n, (), [x, y, *w, *shift, *b, *nothing], wanted)

    def norm(self, module: nn.Module, x: Tensor, y: Tensor, wanted: bool = False) -> None:
        g, b, eps, center = norm_facts(module)
        self.emit(NORM, (x.shape[1], int(center)), (eps,), (x, y, g, b), wanted)

    def pointers(self, window: Window) -> int:
        """Address of the array of the rows' tables of one kind."""
        if window not in self.tables:
            self.tables[window] = np.zeros(self.rows, dtype=np.int64)
        return self.tables[window].ctypes.data

    def _compile(self, net: Decoder) -> None:
        only(net, Decoder, "embed", "blocks", "norm", "outputs", "head", "finish")
        x, e = self.buffer("x", self.d), net.embed
        only(e, type(net.embed), "weight", "scale", "position")
        self.emit(EMBED, (self.d,), (e.scale,), (e.weight, x, positions_table(e.position, self.blocks.longest)))
        for layer, block in enumerate(net.blocks):
            only(block, Block, "branches")
            for branch in block.branches:
                only(branch, Branch, "norm", "mixer", "post")
                h = self.buffer("h", self.d)
                self.norm(branch.norm, x, h)
                y = x if branch.post is None else self.buffer("y", self.d)
                compiler = MIXERS.get(type(branch.mixer))
                if compiler is None:
                    raise Unsupported(f"{type(branch.mixer).__name__} has no fused form")
                compiler(self, branch.mixer, h, y, layer, branch.post is None)
                if branch.post is not None:
                    self.norm(branch.post, y, y)
                    self.emit(ADD, (self.d,), (), (y, x))
        last, h, logits = self.buffer("last", self.d), self.buffer("hidden", self.d), self.buffer("logits", net.outputs)
        self.emit(GATHER, (self.d,), (), (x, last), wanted=True)
        self.norm(net.norm, last, h, wanted=True)
        head = e.weight[: net.outputs] if net.head is None else net.head.weight
        bias = None if net.head is None else net.head.bias
        self.product(h, logits, [head], [bias], wanted=True)
        if net.finish is not None:
            scale, cap = finish_facts(net.finish)
            self.emit(SOFTCAP, (net.outputs,), (scale, cap), (None, logits), wanted=True)

    # ------------------------------------------------------------ running

    def __call__(self, jobs: Sequence[tuple[Text, Sequence[int], int]]) -> list[tuple[Tensor, Tensor]]:
        """For each (text, ids, wanted): logits (wanted, V) and hidden streams (wanted, d) of its last `wanted` ids.

        The ids continue the texts, which remember them.
        """
        out: list[list[tuple[Tensor, Tensor]]] = [[] for _ in jobs]
        pending = [(j, i) for j, (_, ids, _) in enumerate(jobs) for i in range(len(ids))]
        for text, ids, _ in jobs:
            self.blocks.prepare(text, len(ids))
        for begin in range(0, len(pending), self.rows):
            rows = pending[begin : begin + self.rows]
            wanted = [r for r, (j, i) in enumerate(rows) if i >= len(jobs[j][1]) - jobs[j][2]]
            logits, hidden = self._rows(jobs, rows, wanted)
            for at, r in enumerate(wanted):
                out[rows[r][0]].append((logits[at : at + 1], hidden[at : at + 1]))
        for text, ids, _ in jobs:
            self.blocks.advance(text, len(ids))
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
        width = ids.strides[0]
        step = Step(
            rows=n, n_wanted=len(wanted), n_ops=len(self.ops), threads=len(self._scores),
            tokens=ids.ctypes.data, slots=ids.ctypes.data + width, wanted=ids.ctypes.data + 2 * width,
            ops=ctypes.addressof(self._ops), next=self._next.ctypes.data, scores=self._scores.data_ptr(),
            scores_stride=self._stride,
        )  # fmt: skip
        assert self.lib is not None
        self.lib.protea_step(ctypes.byref(step))
        k = len(wanted)
        return self.buffers["logits"][:k].clone(), self.buffers["hidden"][:k].clone()


def norm_facts(module: nn.Module) -> tuple[Tensor | None, Tensor | None, float, bool]:
    """Gain, shift, epsilon, and whether the mean is taken off."""
    if type(module) is RMSNorm:
        only(module, RMSNorm, "g", "eps")
        return module.g, None, module.eps, False
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        return module.weight, module.bias, module.eps, True
    raise Unsupported(f"{type(module).__name__} has no fused form")


def finish_facts(module: nn.Module) -> tuple[float, float]:
    """Scale and soft cap (0: none) of logits."""
    kind, facts = type(module).__name__, vars(module)
    if kind == "SoftCapLogits":
        return 1.0, float(facts["cap"])
    if kind == "ScaleLogits":
        return float(facts["scale"]), 0.0
    raise Unsupported(f"{kind} has no fused form")


def positions_table(position: nn.Module | None, longest: int) -> Tensor | None:
    """What an embedding adds at each position, (longest, d)."""
    if position is None:
        return None
    if type(position) is LearnedPositions:
        if len(position.weight) < longest:
            raise Unsupported(f"{len(position.weight)} learned positions are fewer than {longest}")
        return position.weight
    if type(position) is Sinusoidal:
        return position(torch.arange(longest)).contiguous()
    raise Unsupported(f"{type(position).__name__} has no fused form")


def activation(function: object) -> int:
    """Its number in kernels.cpp."""
    if isinstance(function, nn.GELU):
        return 1 if function.approximate == "tanh" else 2
    name = getattr(function, "__name__", "")
    keywords = getattr(function, "keywords", {})
    if keywords == {"approximate": "tanh"} or name in ("gelu_tanh", "gelu_new"):
        return 1
    if name in ("relu2", "squared_relu", "relu_squared"):
        return 4
    found = ACTIVATIONS.get(function, ACTIVATIONS.get(type(function)))
    if found is None:
        raise Unsupported(f"the activation {function!r} has no fused form")
    return found


def gqa(plan: Plan, m: GQA, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    """Projections side by side; heads normed, turned and remembered; attention over the blocks; the way back."""
    only(m, GQA, "q", "k", "v", "o", "d_head", "position", "kernel", "window", "scale", "qk_norm")
    d, q, k = m.d_head, m.q.out_features, m.k.out_features
    heads, kv, block = q // d, k // d, plan.blocks.block
    cap, slopes = 0.0, None
    if type(m.kernel) is SoftCap:
        cap = m.kernel.cap
    elif type(m.kernel) is ALiBi:
        slopes = m.kernel.slopes.float().contiguous()
    elif m.kernel is not sdpa:
        raise Unsupported(f"the kernel {m.kernel!r} has no fused form")
    norms, eps = (None, None), 0.0
    if m.qk_norm is not None:
        (gq, bq, eps, cq), (gk, bk, eps_k, ck) = norm_facts(m.qk_norm.q), norm_facts(m.qk_norm.k)
        if cq or ck or bq is not None or bk is not None or eps != eps_k or gq is None or gq.shape != (d,):
            raise Unsupported("norms of queries and keys that have no fused form")
        norms = (gq, gk)
    cos = sin = None
    half, layout = 0, 0
    if (rope := m.position) is not None:
        only(rope, RoPE, "frequencies", "scale", "turn")
        if rope.turn not in (rotate, rotate_interleaved):
            raise Unsupported("a rotary layout that has no fused form")
        cos, sin = rotary_table(plan, rope)
        half, layout = cos.shape[1], int(rope.turn is rotate_interleaved)
    shape = torch.empty(1, kv, 1, d)
    keys, values = plan.blocks.layer(layer, m.window, shape, shape)
    qkv, a = plan.buffer(f"qkv{q + 2 * k}", q + 2 * k), plan.buffer(f"a{q}", q)
    tables = plan.pointers(m.window)
    plan.linear(h, qkv, (m.q, m.k, m.v))
    n = (heads, kv, d, d, block, 2 * half, layout, m.window or 0)
    plan.emit(REMEMBER, n, (eps,), (qkv, keys, values, tables, cos, sin, *norms))
    plan.emit(ATTEND, n, (m.scale or 1 / math.sqrt(d), cap), (qkv, keys, values, tables, slopes, a))
    plan.linear(a, y, (m.o,), add)


def rotary_table(plan: Plan, rope: RoPE) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, (longest, half), once for all layers."""
    for name, made in plan.__dict__.setdefault("rotary", []):
        if name is rope:
            return made
    made = tuple(part.float().contiguous() for part in rope.angles(torch.arange(plan.blocks.longest)))
    plan.__dict__["rotary"].append((rope, made))
    return made


def gated(plan: Plan, m: GatedMLP, h: Tensor, y: Tensor, layer: int, add: bool) -> None:
    only(m, GatedMLP, "gate", "up", "down", "activation")
    inside = plan.buffer(f"m{m.gate.out_features}", m.gate.out_features)
    plan.linear(h, inside, (m.gate, m.up), act=activation(m.activation), kind=GLU)
    plan.linear(inside, y, (m.down,), add)


MIXERS: dict[type, Callable[[Plan, nn.Module, Tensor, Tensor, int, bool], None]] = {GQA: gqa, GatedMLP: gated}
