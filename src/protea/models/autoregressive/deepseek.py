"""DeepSeek-V2 and V3 (DeepSeek-AI 2024): latent attention, fine-grained experts beside shared ones, first layers dense.

    x <- x + MLA(RMSNorm(x)),   x <- x + shared(RMSNorm(x)) + sum_{i chosen} g_i expert_i(RMSNorm(x))

V2 chooses by softmax, among the experts of a token's best groups, and balances by losses. V3 chooses by sigmoid
affinity plus a bias that is moved against the load, weighs by the affinities normalised and scaled, and may predict
several tokens ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from protea.models.autoregressive.architecture import Architecture
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.deepseek_hf import V2, V3
from protea.nn.block import Block, Branch
from protea.nn.mla import MLA, LowRank
from protea.nn.mlp_gated import SwiGLU
from protea.nn.moe import Experts, MoE
from protea.nn.mtp import Ahead, MultiToken
from protea.nn.norm import RMSNorm
from protea.nn.position import rotate, rotate_interleaved
from protea.nn.rope import make_rope
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import Affinity, Groups, TopK
from protea.nn.router_losses import CommunicationBalance, DeviceBalance, SequenceBalance
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class DeepSeekConfig:
    """The papers' sizes.

    Attention: `d_c` is the latent's width, `d_nope` and `d_rope` a key's, `d_v` a value's, `q_rank` that of compressed
    queries (None: not compressed). Experts: the `n_dense` first layers have none; a token uses the `n_shared` and
    `top_k` of the `n_experts`, each `d_expert` wide, in the best `top_groups` of `n_groups`; `scale` and `normalise`
    are of their weights; `aux` weighs the sequence-wise balance loss. `n_ahead` modules look further.
    """

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    d_ff: int = 352
    context: int = 256
    q_rank: int | None = None
    d_c: int = 64
    d_nope: int = 32
    d_rope: int = 16
    d_v: int = 32
    n_dense: int = 1
    n_experts: int = 16
    n_shared: int = 1
    top_k: int = 4
    d_expert: int = 72
    n_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    normalise: bool = True
    aux: float = 1e-4
    n_ahead: int = 0
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    interleave: bool = True
    norm_eps: float = 1e-6
    bias: bool = False
    tie: bool = False


def temperature(c: DeepSeekConfig) -> float:
    """1 / sqrt(d_nope + d_rope), times (0.1 m ln s + 1)^2 where YaRN stretches by s and says mscale_all_dim = m."""
    scaling = c.rope_scaling or {}
    m, s = scaling.get("mscale_all_dim") or 0.0, scaling.get("factor") or 1.0
    return (c.d_nope + c.d_rope) ** -0.5 * ((0.1 * m * math.log(s) + 1.0) ** 2 if s > 1 else 1.0)


def _build(c: DeepSeekConfig, inputs: int, outputs: int, router: Callable[[DeepSeekConfig], LearnedRouter]) -> Decoder:
    turn = rotate_interleaved if c.interleave else rotate
    rope = make_rope(c.d_rope, c.rope_theta, c.rope_scaling, c.context, turn)

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, c.norm_eps)

    def attention() -> MLA:
        width = c.n_heads * (c.d_nope + c.d_rope)
        q = None if c.q_rank is None else LowRank(c.d_model, c.q_rank, width, bias=c.bias)
        return MLA(
            c.d_model, c.n_heads, d_c=c.d_c, d_nope=c.d_nope, d_rope=c.d_rope, d_v=c.d_v, position=rope, q=q,
            scale=temperature(c), bias=c.bias,
        )  # fmt: skip

    def block(i: int) -> Block:
        mlp: nn.Module = SwiGLU(c.d_model, c.d_ff)
        if i >= c.n_dense:
            shared = SwiGLU(c.d_model, c.n_shared * c.d_expert) if c.n_shared else None
            mlp = MoE(router(c), Experts(c.n_experts, c.d_model, c.d_expert), shared)
        return Block([Branch(norm(), attention()), Branch(norm(), mlp)])

    blocks = [block(i) for i in range(c.n_layers)]
    depths = [Ahead(c.d_model, block(c.n_dense), (norm(), norm(), norm())) for _ in range(c.n_ahead)]
    ahead = MultiToken(depths) if depths else None
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, c.tie, ahead=ahead))


def softmax_router(c: DeepSeekConfig) -> LearnedRouter:
    """V2's: group-limited softmax, and its losses between experts, devices (here: groups) and what devices receive."""
    groups, losses = None, [SequenceBalance(c.aux)]
    if c.n_groups > 1:
        groups = Groups(c.n_groups, c.top_groups)
        losses += [DeviceBalance(c.n_groups), CommunicationBalance(c.n_groups, c.top_groups)]
    choice = TopK(c.top_k, normalise=False, scale=c.scale, groups=groups)
    return LearnedRouter(c.d_model, c.n_experts, choice, losses)


def sigmoid_router(c: DeepSeekConfig) -> LearnedRouter:
    """V3's: biased sigmoid affinities, groups ranked by their best two."""
    groups = Groups(c.n_groups, c.top_groups, best=2) if c.n_groups > 1 else None
    choice = Affinity(c.n_experts, c.top_k, normalise=c.normalise, scale=c.scale, groups=groups)
    return LearnedRouter(c.d_model, c.n_experts, choice, [SequenceBalance(c.aux)])


def build_2(config: DeepSeekConfig, inputs: int, outputs: int) -> Decoder:
    """DeepSeek-V2: `inputs` ids can be read, the first `outputs` of them predicted."""
    return _build(config, inputs, outputs, softmax_router)


def build_3(config: DeepSeekConfig, inputs: int, outputs: int) -> Decoder:
    """DeepSeek-V3: `inputs` ids can be read, the first `outputs` of them predicted."""
    return _build(config, inputs, outputs, sigmoid_router)


def scaled(n_layers: int, d_model: int, context: int) -> DeepSeekConfig:
    """One shared and four of sixteen experts cost a token what a dense perceptron of 8/3 d_model would."""
    heads = max(2, d_model // 32)
    d = 4 * max(1, d_model // heads // 4)
    return DeepSeekConfig(
        n_layers, d_model, heads, 16 * round(d_model / 6), context, d_c=max(8, d_model // 2), d_nope=d,
        d_rope=max(4, d // 2), d_v=d, n_dense=min(1, n_layers - 1), d_expert=4 * max(1, round(d_model / 7.5)),
    )  # fmt: skip


DEEPSEEK_V2 = Architecture(
    name="deepseek-v2",
    title="DeepSeek-V2 (latent attention, shared and fine-grained experts)",
    source="DeepSeek-AI 2024, DeepSeek-V2",
    config=DeepSeekConfig,
    build=build_2,
    scaled=scaled,
    hf=V2(DeepSeekConfig),
)
DEEPSEEK_V3 = Architecture(
    name="deepseek-v3",
    title="DeepSeek-V3 (latent attention, experts balanced without a loss, several tokens ahead)",
    source="DeepSeek-AI 2024, DeepSeek-V3 technical report",
    config=DeepSeekConfig,
    build=build_3,
    scaled=scaled,
    hf=V3(DeepSeekConfig),
)
