"""What the Hugging Face spellings of several architectures share: names of weights, rotary settings, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from protea.errors import DataError
from protea.models.autoregressive.architecture import Weight
from protea.nn.rope import SCALINGS

Facts = Mapping[str, Any]


def fact(config: Facts, name: str, default: Any = ...) -> Any:
    """An entry of config.json; `default` where it is absent or null.

    Raises:
        DataError: it is absent and has no default.
    """
    value = config.get(name)
    if value is None:
        if default is ...:
            raise DataError(f"config.json does not say {name}.", "Copy the whole folder of the model.")
        return default
    return value


def demand(config: Facts, **wanted: Any) -> None:
    """Check entries whose other values we do not have; an absent entry is taken to be as wanted.

    Raises:
        DataError: an entry asks for something else.
    """
    for name, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if name in config and config[name] is not None and config[name] not in allowed:
            raise DataError(
                f"config.json asks for {name} = {config[name]!r}, which this architecture does not have here.",
                f"Known: {', '.join(map(repr, allowed))}.",
            )


def one(ours: str, theirs: str) -> Weight:
    """A tensor that both sides hold alike."""
    return Weight((ours,), (theirs,))


def transposed(ours: str, theirs: str) -> Weight:
    """A matrix that they hold transposed."""

    def turn(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].T]

    return Weight((ours,), (theirs,), turn, turn)


def stacked(ours: tuple[str, ...], theirs: str, dim: int = 0, turn: bool = False) -> Weight:
    """Several of our tensors of equal shape that they hold as one, joined along `dim` (and transposed)."""
    import torch

    def load(tensors: list[Tensor]) -> list[Tensor]:
        parts = tensors[0].chunk(len(ours), dim)
        return [p.T.contiguous() if turn else p for p in parts]

    def save(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([t.T if turn else t for t in tensors], dim)]

    return Weight(ours, (theirs,), load, save)


def linears(ours: str, theirs: str, pairs: Mapping[str, str], bias: bool = False) -> list[Weight]:
    """Linear layers of a module: our names to theirs."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [one(f"{ours}.{a}.{kind}", f"{theirs}.{b}.{kind}") for a, b in pairs.items() for kind in kinds]


QKV = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
ATTENTION = {**QKV, "o": "o_proj"}
GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def ends(tie: bool, gain: str = "norm.g") -> list[Weight]:
    """Embedding, last norm and, where it is not tied, the head."""
    both = [one("embed.weight", "model.embed_tokens.weight"), one(gain, "model.norm.weight")]
    return both if tie else [*both, one("head.weight", "lm_head.weight")]


def rope_of(config: Facts, theta: float = 10000.0) -> tuple[float, dict[str, Any] | None]:
    """theta and the scaling (None for none) of config.json, in the spelling of transformers 4 or 5.

    Raises:
        DataError: a scaling that we do not have.
    """
    new = dict(config.get("rope_parameters") or {})
    old = dict(config.get("rope_scaling") or {})
    facts = {**new, **old}
    theta = float(facts.pop("rope_theta", None) or config.get("rope_theta") or theta)
    kind = facts.pop("rope_type", None) or facts.get("type", "default")
    facts.pop("type", None)
    partial = facts.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        facts["partial_rotary_factor"] = partial
    if kind == "default":
        return theta, ({"rope_type": "default", **facts} if facts else None)
    if kind not in SCALINGS:
        raise DataError(f"config.json asks for a rotary scaling {kind!r}.", f"Known: {', '.join(SCALINGS)}.")
    length = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if kind in ("llama3", "yarn", "longrope") and length:
        facts.setdefault("original_max_position_embeddings", length)
    return theta, {"rope_type": kind, **{name: value for name, value in facts.items() if value is not None}}


def rope_to(theta: float, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of config.json, in both spellings."""
    facts = dict(scaling or {"rope_type": "default"})
    out: dict[str, Any] = {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, **facts}}
    if "partial_rotary_factor" in facts:
        out["partial_rotary_factor"] = facts["partial_rotary_factor"]
    if facts["rope_type"] != "default":
        out["rope_scaling"] = {**facts, "rope_theta": theta}
    return out


def common(config: Facts, theta: float = 10000.0, eps: float = 1e-6) -> dict[str, Any]:
    """The settings that Llama's kin share, under our names; d_head is None where it is d_model / n_heads."""
    heads, d_model = fact(config, "num_attention_heads"), fact(config, "hidden_size")
    theta, scaling = rope_of(config, theta)
    return {
        "n_layers": fact(config, "num_hidden_layers"), "d_model": d_model, "n_heads": heads,
        "n_kv_heads": fact(config, "num_key_value_heads", heads), "d_ff": fact(config, "intermediate_size"),
        "context": fact(config, "max_position_embeddings", 2048), "rope_theta": theta,
        "norm_eps": fact(config, "rms_norm_eps", eps), "tie": fact(config, "tie_word_embeddings", False),
        "d_head": fact(config, "head_dim", None), "rope_scaling": scaling,
    }  # fmt: skip


def common_to(c: Any, inputs: int) -> dict[str, Any]:
    """The inverse of `common`."""
    return {
        "vocab_size": inputs, "hidden_size": c.d_model, "intermediate_size": c.d_ff, "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.d_head or c.d_model // c.n_heads, "hidden_act": "silu", "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tie, **rope_to(c.rope_theta, c.rope_scaling),
    }  # fmt: skip


LAYERS = {"sliding_attention": "sliding", "full_attention": "full"}


def pattern_of(config: Facts, every: int) -> tuple[str, ...]:
    """Kinds of the layers, "sliding" or "full": layer_types, or every n-th full (sliding_window_pattern, `every`).

    Raises:
        DataError: a kind of layer that we do not have.
    """
    n, kinds = fact(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        every = fact(config, "sliding_window_pattern", every)
        return tuple("full" if (i + 1) % every == 0 else "sliding" for i in range(n))
    unknown = sorted({str(kind) for kind in kinds} - set(LAYERS))
    if unknown or len(kinds) != n:
        raise DataError(f"config.json has {len(kinds)} layer_types for {n} layers (unknown: {unknown or 'none'}).")
    return tuple(LAYERS[kind] for kind in kinds)


def pattern_to(pattern: tuple[str, ...], n_layers: int) -> list[str]:
    """layer_types of a pattern that repeats."""
    return [f"{pattern[i % len(pattern)]}_attention" for i in range(n_layers)]


def window_of(i: int, pattern: tuple[str, ...], window: int | None) -> int | None:
    """The window of layer i: none in a full layer."""
    return window if pattern[i % len(pattern)] == "sliding" else None
