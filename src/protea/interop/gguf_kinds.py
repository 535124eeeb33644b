"""What GGUF says of the architectures llama.cpp has: sizes, and tensors where they differ from the folder's.

    Llama            query and key rows in the interleaved order of the rotary pairs
    GPT-2            matrices transposed
    Gemma            gains with 1 added
    Mamba, Jamba     A = -exp(A_log); taps (C, K); a column for each head of Mamba-2; zero where a bias is missing
    DeepSeek         keys' and values' half of the latent's matrix apart, keys' transposed for the absorbed form
    experts          those of a layer as one tensor each of gates, ups and downs

What llama.cpp computes otherwise is refused, with what would be possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protea.errors import NotSupported
from protea.interop.gguf_sizes import decoder_sizes, deepseek_sizes, hybrid_sizes, mpt_sizes, state_sizes

Config = Mapping[str, Any]
Tensors = dict[str, Tensor]
LITE = (26, 27)  # layers by which llama.cpp tells DeepSeek's lite models, whose queries are not compressed
INSTEAD = "Export with --to hf or --to onnx instead."


def interleave_rows(weight: Tensor, heads: int) -> Tensor:
    """Rows (or entries) of each head from half-split rotary pairs to interleaved ones.

    >>> interleave_rows(torch.arange(8.0), 2).tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def stacked(tensors: Mapping[str, Tensor]) -> Tensors:
    """Experts of a layer as one tensor each of gates, ups and downs, as llama.cpp keeps them."""
    out: Tensors = {}
    experts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        head, found, tail = name.partition(".experts.")
        if not found:
            out[name] = tensor
            continue
        number, _, part = tail.partition(".")
        experts.setdefault(f"{head}.experts.{part}", []).append((int(number), tensor))
    for name, members in experts.items():
        out[name] = torch.stack([t for _, t in sorted(members, key=lambda m: m[0])])
    return out


def _same(tensors: Tensors, c: Config) -> Tensors:
    return tensors


def _llama(tensors: Tensors, c: Config) -> Tensors:
    heads = c["num_attention_heads"]
    of = {"q_proj": heads, "k_proj": c.get("num_key_value_heads") or heads}
    out = dict(tensors)
    for name, t in tensors.items():
        if (part := name.split(".")[-2]) in of:
            out[name] = interleave_rows(t, of[part])
    return out


def _gpt2(tensors: Tensors, c: Config) -> Tensors:
    turned = ("c_attn", "c_proj", "c_fc")
    return {n: t.T if t.ndim == 2 and n.split(".")[-2] in turned else t for n, t in tensors.items()}


def _gemma(tensors: Tensors, c: Config) -> Tensors:
    return {n: t + 1 if n.endswith("norm.weight") else t for n, t in tensors.items()}


def _qwen_moe(third: bool) -> Callable[[Tensors, Config], Tensors]:
    def convert(tensors: Tensors, c: Config) -> Tensors:
        if c["mlp_only_layers"] or c["decoder_sparse_step"] != 1:
            raise NotSupported("llama.cpp has no Qwen mixture with dense layers (`dense`).", INSTEAD)
        if c["norm_topk_prob"] != third:
            raise NotSupported(
                f"llama.cpp {'always' if third else 'never'} normalises the weights of the experts in "
                f"{c['model_type']!r}; this model has normalise = {c['norm_topk_prob']}.",
                f"Train with normalise = {str(third).lower()}, or export with --to hf or --to onnx.",
            )
        return tensors if third else {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}  # never tied

    return convert


def _state_space(tensors: Tensors, c: Config) -> Tensors:
    """Mamba's, and those of Jamba's Mamba layers."""
    if c.get("use_bias"):
        raise NotSupported("llama.cpp's Mamba has no biases of the projections (`bias`).", INSTEAD)
    if c.get("n_groups", 1) > 1:
        raise NotSupported("llama.cpp normalises each group of Mamba-2 by itself, this model all at once.", INSTEAD)
    second = c["model_type"] == "mamba2"
    out: Tensors = {}
    for name, t in tensors.items():
        head, _, last = name.rpartition(".")
        if last == "A_log":
            t = -t.float().exp()
        if second and last in ("A_log", "D"):
            t = t[:, None]
        if name.endswith("conv1d.weight"):
            t = t.squeeze(1)
            if f"{head}.bias" not in tensors:
                out[f"{head}.bias"] = t.new_zeros(len(t))
        out[f"{head}.dt_proj.bias" if last == "dt_bias" else name] = t
    if second:
        out = {n: t[None] if n.endswith("mixer.norm.weight") else t for n, t in out.items()}
    return out


def _compressed(tensors: Tensors, c: Config) -> Tensors:
    """Queries that are not compressed, in the form of those that are: llama.cpp knows the plain one in V2-Lite alone.

        W q(u) = W (g * n),  n = u / rms(u),  is  W_b (g_a * RMSNorm(W_a (g * n)))  with  W_a = diag(1 / g), g_a = g,

    since n has a mean square of 1 already. It costs a matrix of d_model by d_model a layer.
    """
    if c["q_lora_rank"] is not None or c["num_hidden_layers"] in LITE:
        return tensors
    out: Tensors = {}
    for name, t in tensors.items():
        if not name.endswith("self_attn.q_proj.weight"):
            out[name] = t
            continue
        head = name.removesuffix("self_attn.q_proj.weight")
        g = tensors[f"{head}input_layernorm.weight"]
        if not bool((g.abs() > 1e-6).all()):
            raise NotSupported("llama.cpp compresses queries, which a gain of zero before them forbids.", INSTEAD)
        out[f"{head}self_attn.q_a_proj.weight"] = torch.diag(1 / g.float()).to(t.dtype)
        out[f"{head}self_attn.q_a_layernorm.weight"] = g
        out[f"{head}self_attn.q_b_proj.weight"] = t
    return out


def _deepseek(tensors: Tensors, c: Config) -> Tensors:
    """Layers past the last are those that look ahead: llama.cpp's greedy text does without them."""
    if c["q_lora_rank"] is not None and c["num_hidden_layers"] in LITE:
        raise NotSupported(
            f"llama.cpp takes a DeepSeek of {c['num_hidden_layers']} layers for one of plain queries.",
            INSTEAD,
        )
    if c["n_group"] > 1 and c["scoring_func"] == "softmax":
        raise NotSupported(
            "llama.cpp ranks groups of experts by their best two (DeepSeek-V3), this model by the best (V2).",
            "Train with n_groups = 1, or deepseek-v3; or export with --to hf or --to onnx.",
        )
    if not c["n_shared_experts"]:
        raise NotSupported("llama.cpp's DeepSeek has a shared expert at least.", "Train with n_shared = 1. " + INSTEAD)
    if c.get("attention_bias"):
        raise NotSupported("llama.cpp's DeepSeek has no biases of attention (`bias`).", INSTEAD)
    heads, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
    apart = c.get("rope_interleave", True) is False
    out: Tensors = {}
    for name, t in _compressed(tensors, c).items():
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) >= c["num_hidden_layers"]:
            continue
        stem = name.removesuffix(".weight")
        if stem.endswith("kv_b_proj"):
            k, v = t.unflatten(0, (heads, -1)).split((nope, c["v_head_dim"]), 1)
            out[stem.replace("kv_b_proj", "k_b_proj") + ".weight"] = k.transpose(1, 2)
            out[stem.replace("kv_b_proj", "v_b_proj") + ".weight"] = v
            continue
        if apart and stem.endswith(("q_b_proj", "q_proj")):
            fixed, turned = t.unflatten(0, (heads, -1)).split((nope, rope), 1)
            turned = interleave_rows(turned.flatten(0, 1), heads).unflatten(0, (heads, -1))
            t = torch.cat((fixed, turned), 1).flatten(0, 1)
        if apart and stem.endswith("kv_a_proj_with_mqa"):
            t = torch.cat((t[:-rope], interleave_rows(t[-rope:], 1)))
        out[name.replace("e_score_correction_bias", "e_score_correction.bias")] = t
    return out


def _cohere(tensors: Tensors, c: Config) -> Tensors:
    kinds = c["layer_types"]
    if kinds != ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(len(kinds))]:
        raise NotSupported(
            f"llama.cpp's Cohere 2 lets every fourth layer see all; this model has {kinds}.",
            "Train with n_layers = 4 at least and the default pattern, or export with --to hf or --to onnx.",
        )
    if not c["tie_word_embeddings"]:
        raise NotSupported("llama.cpp's Cohere 2 has a tied head.", "Train with tie = true. " + INSTEAD)
    return tensors


@dataclass(frozen=True)
class Kind:
    """One architecture of llama.cpp.

    Args:
        arch: of gguf.MODEL_ARCH.
        convert: (the folder's tensors, config.json) to theirs, under the folder's names; refuses what has no place.
        sizes: writes what the reader asks for: (writer, config.json, the gguf package).
    """

    arch: str
    convert: Callable[[Tensors, Config], Tensors] = _same
    sizes: Callable[[Any, Config, Any], None] = decoder_sizes


KINDS: dict[str, Kind] = {
    "llama": Kind("LLAMA", _llama),
    "mistral": Kind("LLAMA", _llama),
    "mixtral": Kind("LLAMA", _llama),
    "qwen2": Kind("QWEN2"),
    "qwen3": Kind("QWEN3"),
    "qwen2_moe": Kind("QWEN2MOE", _qwen_moe(False)),
    "qwen3_moe": Kind("QWEN3MOE", _qwen_moe(True)),
    "gpt2": Kind("GPT2", _gpt2),
    "gemma2": Kind("GEMMA2", _gemma),
    "gemma3_text": Kind("GEMMA3", _gemma),
    "cohere2": Kind("COHERE2", _cohere),
    "deepseek_v2": Kind("DEEPSEEK2", _deepseek, deepseek_sizes),
    "deepseek_v3": Kind("DEEPSEEK2", _deepseek, deepseek_sizes),
    "mamba": Kind("MAMBA", _state_space, state_sizes),
    "mamba2": Kind("MAMBA2", _state_space, state_sizes),
    "jamba": Kind("JAMBA", _state_space, hybrid_sizes),
    "mpt": Kind("MPT", _same, mpt_sizes),
}
