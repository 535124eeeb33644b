"""DeepSeek-V2 and V3 against transformers: every option, its multi-token modules, and the published size."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from protea.errors import DataError
from protea.interop.huggingface import from_pretrained, save_pretrained
from protea.models.autoregressive import deepseek
from protea.models.autoregressive.architectures import language_model
from protea.nn.context import plain_context
from protea.spaces import Tokens

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "kv_lora_rank": 16, "q_lora_rank": 20,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "moe_intermediate_size": 24,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 1.0,
}  # fmt: skip
GROUPS = {"n_group": 4, "topk_group": 2}


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("greedy, first layer dense", {"first_k_dense_replace": 1}),
        ("group-limited, no layer dense, scaled", {"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0,
                                                   **GROUPS}),
        ("plain queries, biases, tied, 2 layers dense", {"q_lora_rank": None, "attention_bias": True,
                                                         "tie_word_embeddings": True, "first_k_dense_replace": 2}),
        ("YaRN with mscale", {"rope_parameters": YARN, "first_k_dense_replace": 1}),
    ],
)  # fmt: skip
def test_deepseek_v2(parity, note, options):
    config = transformers.DeepseekV2Config(**{**SIZE, **options})
    ours = parity(config, id="AR-32", system="DeepSeek-V2", note=note)
    assert ours.architecture == "deepseek-v2"


def move_biases(model) -> None:
    """The harness perturbs parameters; the selection bias is a buffer."""
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.5 * torch.randn_like(buffer))


@pytest.mark.parametrize(
    ("note", "options"),
    [
        ("groups, biases that select, no layer dense", {"first_k_dense_replace": 0, **GROUPS}),
        ("one group, first layer dense, not normalised",
         {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
        ("half-split rotary, plain queries, biases, tied, 2 layers dense",
         {"first_k_dense_replace": 2, "rope_interleave": False, "q_lora_rank": None, "attention_bias": True,
          "tie_word_embeddings": True, **GROUPS}),
        ("YaRN with mscale", {"rope_parameters": YARN, "first_k_dense_replace": 1, **GROUPS}),
    ],
)  # fmt: skip
def test_deepseek_v3(parity, note, options):
    config = transformers.DeepseekV3Config(**{**SIZE, **options})
    ours = parity(config, id="AR-33", system="DeepSeek-V3", note=note, prepare=move_biases)
    assert ours.architecture == "deepseek-v3" and ours.config.n_ahead == 0


@torch.no_grad()
def test_modules_that_look_ahead(tmp_path, hf, evidence):
    """Against transformers' MtpModel, which takes the weights of the layers after the last."""
    from transformers.modeling_layers import MtpModel

    config = transformers.DeepseekV3Config(**{**SIZE, **GROUPS}, first_k_dense_replace=1, num_mtp_layers=2)
    main = hf.random_model(config)
    torch.manual_seed(1)
    theirs = MtpModel(main, 2).float().eval()
    for p in theirs.layers.parameters():
        p.copy_(torch.randn_like(p) * p.shape[-1] ** -0.5 if p.ndim > 1 else 1 + 0.3 * torch.randn_like(p))

    c = deepseek.V3(deepseek.DeepSeekConfig).read({**config.to_dict(), "num_nextn_predict_layers": 2})
    ours = language_model("deepseek-v3", Tokens(20, 61, "ids", begin=0), c)
    main.save_pretrained(tmp_path / "main")
    found = from_pretrained(tmp_path / "main")
    ours.net.load_state_dict(found.net.state_dict(), strict=False)
    names = {"enorm": "embed_norm", "hnorm": "hidden_norm", "eh_proj": "join", "post_norm": "norm"}
    b, s = "mtp_block.self_attn", "block.branches.0.mixer"
    names |= {f"{b}.{t}": f"{s}.{o}" for t, o in {
        "q_a_proj": "q.compress", "q_a_layernorm": "q.norm", "q_b_proj": "q.expand", "kv_a_proj_with_mqa": "kv_down",
        "kv_a_layernorm": "norm", "kv_b_proj": "kv_up", "o_proj": "o"}.items()}  # fmt: skip
    m, e = "mtp_block.mlp", "block.branches.1.mixer"
    names |= {f"{m}.shared_experts.{x}_proj": f"{e}.shared.{x}" for x in ("gate", "up", "down")}
    names |= {"mtp_block.input_layernorm": "block.branches.0.norm", f"{m}.gate": f"{e}.router",
              "mtp_block.post_attention_layernorm": "block.branches.1.norm"}  # fmt: skip
    for k in range(2):
        layer, module = theirs.layers[k], ours.net.ahead.depths[k]
        for t, o in names.items():
            next(module.get_submodule(o).parameters(recurse=False)).copy_(layer.get_submodule(t).weight)
        for t, o in (("gate_up_proj", "gate_up"), ("down_proj", "down")):
            getattr(module.get_submodule(f"{e}.experts"), o).copy_(getattr(layer.get_submodule(f"{m}.experts"), t))

    ours.eval()
    u = torch.randint(0, 61, (2, 12))
    h = main.model(u).last_hidden_state
    streams = ours.net.ahead.streams(ours.net, u, ours.net.hidden(u, plain_context(12)), plain_context(12))
    for k, stream in enumerate(streams, 1):
        t = 12 - k
        h = theirs.forward_layer(k - 1, h[:, :t], torch.arange(k, 12)[None], None, input_ids=u[:, k:])
        got, want = ours.net.read(stream), main.lm_head(h)
        evidence(id="AR-33", system="Multi-token prediction", claim=f"logits of module {k}", tolerance=1e-4,
                 reference="transformers MtpModel", reached=hf.relative(got, want), unit="relative")  # fmt: skip

    save_pretrained(ours, tmp_path / "ours")  # the modules stand after the last layer, as in the published folder
    again = from_pretrained(tmp_path / "ours")
    assert again.config == ours.config and again.config.n_ahead == 2
    for (name, a), b in zip(ours.net.state_dict().items(), again.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    part = tmp_path / "ours" / "model.safetensors"  # published folders repeat head and embedding there
    tensors = load_file(part)
    tensors["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    tensors["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, part)
    assert from_pretrained(tmp_path / "ours").config == ours.config


def test_deepseek_v3_has_its_published_size(evidence):
    config = deepseek.DeepSeekConfig(
        n_layers=61, d_model=7168, n_heads=128, d_ff=18432, context=163840, q_rank=1536, d_c=512, d_nope=128,
        d_rope=64, d_v=128, n_dense=3, n_experts=256, n_shared=1, top_k=8, d_expert=2048, n_groups=8, top_groups=4,
        scale=2.5,
    )  # fmt: skip
    with torch.device("meta"):
        net = deepseek.build_3(config, 129280, 129280)
    n = sum(p.numel() for p in net.parameters())
    experts = sum(p.numel() for name, p in net.named_parameters() if ".experts." in name)
    active = n - experts * (256 - 8) // 256
    evidence(id="AR-33", system="DeepSeek-V3", claim="parameters, off by", reference="671,026,404,352",
             reached=abs(n - 671_026_404_352), tolerance=0)  # fmt: skip
    # 37 billion in the paper: the embedding, which is looked up, is not counted as active.
    evidence(id="AR-33", system="DeepSeek-V3", claim="active parameters, off by", reference="37 billion",
             reached=abs((active - net.embed.weight.numel()) / 1e9 - 37), tolerance=0.5, unit="billion")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [("v2", {"topk_method": "best"}), ("v2", {"norm_topk_prob": True}), ("v3", {"hidden_act": "gelu"}),
     ("v3", {"num_key_value_heads": 2})],
)  # fmt: skip
def test_options_that_we_do_not_have_are_named(kind, options):
    spelled = {"v2": deepseek.V2, "v3": deepseek.V3}[kind](deepseek.DeepSeekConfig)
    with pytest.raises(DataError, match=next(iter(options))):
        spelled.read({**SIZE, **options})
