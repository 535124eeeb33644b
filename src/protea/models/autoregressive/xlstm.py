r"""xLSTM: matrix memories, and scalar ones that mix (Beck et al. 2024; the block of xLSTM-7B, Beck et al. 2025).

    x <- x + mLSTM(RMSNorm(x)),   x <- x + SwiGLU(RMSNorm(x)),

with sLSTM in place of mLSTM in the layers that `slstm` names. Logits are capped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protea.errors import NotSupported
from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.mamba import ANY_LENGTH
from protea.models.autoregressive.spelling import Facts, demand, fact, linears, one
from protea.nn.block import Block, Branch
from protea.nn.logits import LogitCap
from protea.nn.mlp_gated import SwiGLU
from protea.nn.mlstm import MLSTM
from protea.nn.norm import RMSNorm
from protea.nn.slstm import SLSTM
from protea.nn.tokens import TokenEmbedding


@dataclass(frozen=True)
class XLSTMConfig:
    """The usual names; d_qk and d_v of all heads together; `slstm` lists layers; `context` is the longest text."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    d_qk: int = 64
    d_v: int = 128
    d_ff: int = 352
    context: int = 256
    norm_eps: float = 1e-6
    gate_cap: float = 15.0
    logit_cap: float = 30.0
    cell_eps: float = 1e-6
    slstm: tuple[int, ...] = ()


def build(config: XLSTMConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, c.norm_eps)

    def block(i: int) -> Block:
        if i in c.slstm:
            memory = SLSTM(c.d_model, c.n_heads, norm_eps=c.norm_eps)
        else:
            memory = MLSTM(c.d_model, c.n_heads, c.d_qk, c.d_v, c.gate_cap, c.norm_eps, eps=c.cell_eps)
        return Block([Branch(norm(), memory), Branch(norm(), SwiGLU(c.d_model, c.d_ff))])

    blocks = [block(i) for i in range(c.n_layers)]
    finish = LogitCap(c.logit_cap)
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm(), outputs, finish=finish))


def scaled(n_layers: int, d_model: int, context: int) -> XLSTMConfig:
    """Four heads, keys half as wide as values; one layer in the middle mixes its memory (xLSTM[L-1:1])."""
    slstm = (n_layers // 2,) if n_layers > 1 else ()
    return XLSTMConfig(n_layers, d_model, 4, d_model // 2, d_model, 16 * round(d_model / 6), context, slstm=slstm)


def feed_forward(config: Facts) -> int:
    """d_ff of config.json: a factor of the width, rounded up."""
    multiple = int(fact(config, "ffn_round_up_to_multiple_of", 64))
    wide = fact(config, "hidden_size") * fact(config, "ffn_proj_factor", 2.667)
    return int((wide + multiple - 1) // multiple * multiple)


def read(config: Facts) -> XLSTMConfig:
    demand(config, use_bias=False, weight_mode="single", add_out_norm=True, tie_word_embeddings=False)
    d_model = fact(config, "hidden_size", config.get("embedding_dim"))
    return XLSTMConfig(
        n_layers=fact(config, "num_hidden_layers", config.get("num_blocks")), d_model=d_model,
        n_heads=fact(config, "num_heads"), d_qk=int(d_model * fact(config, "qk_dim_factor", 0.5)),
        d_v=int(d_model * fact(config, "v_dim_factor", 1.0)), d_ff=feed_forward(config),
        context=fact(config, "max_position_embeddings", ANY_LENGTH), norm_eps=fact(config, "norm_eps", 1e-6),
        gate_cap=fact(config, "gate_soft_cap", 15.0), logit_cap=fact(config, "output_logit_soft_cap", 30.0),
        cell_eps=fact(config, "eps", 1e-6),
    )  # fmt: skip


def write(c: XLSTMConfig, inputs: int) -> dict[str, Any]:
    return {
        "vocab_size": inputs, "hidden_size": c.d_model, "embedding_dim": c.d_model, "num_hidden_layers": c.n_layers,
        "num_blocks": c.n_layers, "num_heads": c.n_heads, "qk_dim_factor": c.d_qk / c.d_model,
        "v_dim_factor": c.d_v / c.d_model, "ffn_proj_factor": (c.d_ff + 0.5) / c.d_model,
        "ffn_round_up_to_multiple_of": 1, "norm_eps": c.norm_eps, "gate_soft_cap": c.gate_cap,
        "output_logit_soft_cap": c.logit_cap, "eps": c.cell_eps, "use_bias": False, "weight_mode": "single",
        "add_out_norm": True, "tie_word_embeddings": False, "mode": "inference", "max_position_embeddings": c.context,
    }  # fmt: skip


def weights(c: XLSTMConfig) -> list[Weight]:
    if c.slstm:
        raise NotSupported(
            f"Hugging Face's xLSTM has matrix memories alone; layers {c.slstm} of this model are scalar ones.",
            "Train with slstm = [] to export.",
        )
    out = [one("embed.weight", "backbone.embeddings.weight"), one("norm.g", "backbone.out_norm.weight")]
    out.append(one("head.weight", "lm_head.weight"))
    gates = {"i": "igate_preact", "f": "fgate_preact"}
    plain = {"q": "q", "k": "k", "v": "v", "gate": "ogate_preact", "o": "out_proj"}
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.branches", f"backbone.blocks.{i}"
        out.append(one(f"{ours}.0.norm.g", f"{theirs}.norm_mlstm.weight"))
        out.append(one(f"{ours}.1.norm.g", f"{theirs}.norm_ffn.weight"))
        out += linears(f"{ours}.0.mixer", f"{theirs}.mlstm_layer", plain)
        out += linears(f"{ours}.0.mixer", f"{theirs}.mlstm_layer", gates, bias=True)
        out.append(one(f"{ours}.0.mixer.norm.g", f"{theirs}.mlstm_layer.multihead_norm.weight"))
        pairs = {"gate": "proj_up_gate", "up": "proj_up", "down": "proj_down"}
        out += linears(f"{ours}.1.mixer", f"{theirs}.ffn", pairs)
    return out


ARCHITECTURE = Architecture(
    name="xlstm",
    title="xLSTM (matrix and scalar memories, exponential gates)",
    source="Beck et al. 2024, xLSTM: extended long short-term memory",
    config=XLSTMConfig,
    build=build,
    scaled=scaled,
    hf=HuggingFace("xlstm", "xLSTMForCausalLM", read, write, weights),
)
