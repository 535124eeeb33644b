"""The U-Net and its parts against diffusers, with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protea.errors import ConfigError
from protea.nn.attention2d import Attention2D
from protea.nn.embedding import sinusoid
from protea.nn.residual import ModulatedMLP
from protea.nn.unet import ResidualBlock2D, UNet

pytest.importorskip("diffusers")


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = 0.15 * torch.randn(p.shape, generator=generator) + (p.data if p.ndim == 1 else 0)
    return module.eval()


def port(mine: nn.Module, theirs: nn.Module) -> None:
    mine.load_state_dict(theirs.state_dict())


def port_block(mine: ResidualBlock2D, theirs: nn.Module) -> None:
    for a, b in (("norm_1", "norm1"), ("norm_2", "norm2"), ("conv_1", "conv1"), ("conv_2", "conv2"),
                 ("cond", "time_emb_proj")):  # fmt: skip
        port(getattr(mine, a), getattr(theirs, b))
    if theirs.conv_shortcut is not None:
        port(mine.skip, theirs.conv_shortcut)


def port_attention(mine: Attention2D, theirs: nn.Module) -> None:
    port(mine.norm, theirs.group_norm)
    port(mine.out, theirs.to_out[0])
    parts = [theirs.to_q, theirs.to_k, theirs.to_v]
    mine.qkv.load_state_dict({n: torch.cat([getattr(p, n) for p in parts]) for n in ("weight", "bias")})


def test_sinusoid_parity(evidence) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.linspace(0, 1, 37)
    theirs = get_timestep_embedding(1000 * t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    evidence(id="DI-03", system="Time embedding", claim="sinusoidal features", reference="diffusers",
             reached=(sinusoid(t, 64) - theirs).abs().max(), tolerance=2e-4)  # fmt: skip


@pytest.mark.parametrize("outputs", [16, 24])
def test_residual_block_parity(outputs: int, evidence) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    theirs = randomise(ResnetBlock2D(in_channels=16, out_channels=outputs, temb_channels=32, groups=8, eps=1e-5))
    mine = ResidualBlock2D(16, outputs, 32, groups=8)
    port_block(mine, theirs)
    x, c = torch.randn(3, 16, 6, 6), torch.randn(3, 32)
    evidence(id="DI-03", system="U-Net residual block", claim=f"16 to {outputs} channels, ported weights",
             reference="diffusers ResnetBlock2D", reached=(mine(x, c) - theirs(x, c)).abs().max(),
             tolerance=1e-5)  # fmt: skip


def test_attention_parity(evidence) -> None:
    from diffusers.models.attention_processor import Attention

    theirs = randomise(Attention(32, heads=4, dim_head=8, norm_num_groups=8, eps=1e-5, bias=True,
                                 residual_connection=True, _from_deprecated_attn_block=True))  # fmt: skip
    mine = Attention2D(32, head_dim=8, groups=8)
    port_attention(mine, theirs)
    x = torch.randn(2, 32, 5, 4)
    evidence(id="DI-03", system="U-Net attention", claim="ported weights", reference="diffusers Attention",
             reached=(mine(x) - theirs(x)).abs().max(), tolerance=1e-5)  # fmt: skip


def test_unet_parity(evidence) -> None:
    from diffusers import UNet2DModel

    widths, depth, classes = (16, 24, 32), 2, 3
    theirs = randomise(UNet2DModel(
        in_channels=3, out_channels=3, block_out_channels=widths, layers_per_block=depth, norm_num_groups=8,
        attention_head_dim=8, num_class_embeds=classes + 1, attn_norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ))  # fmt: skip
    mine = UNet(3, widths, depth, classes)
    port(mine.first, theirs.conv_in)
    port(mine.condition.linear_1, theirs.time_embedding.linear_1)
    port(mine.condition.linear_2, theirs.time_embedding.linear_2)
    port(mine.condition.label, theirs.class_embedding)
    for a, b in zip([*mine.down, *mine.up], [*theirs.down_blocks, *theirs.up_blocks]):
        for block, other in zip(a["blocks"], b.resnets, strict=True):
            port_block(block, other)
        for attention, other in zip(a["attention"], getattr(b, "attentions", [])):
            port_attention(attention, other)
        samplers = getattr(b, "downsamplers", None) or getattr(b, "upsamplers", None)
        assert ("resample" in a) == bool(samplers)
        if samplers:
            port(a["resample"], samplers[0].conv)
    port_block(mine.middle[0], theirs.mid_block.resnets[0])
    port_attention(mine.middle[1], theirs.mid_block.attentions[0])
    port_block(mine.middle[2], theirs.mid_block.resnets[1])
    port(mine.norm, theirs.conv_norm_out)
    port(mine.last, theirs.conv_out)
    x, t, y = torch.randn(4, 3, 16, 8), torch.tensor([0.0, 0.2, 0.7, 1.0]), torch.tensor([0, 1, 2, 3])
    expected = theirs(x, 1000 * t, y).sample
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())
    evidence(id="DI-03", system="U-Net", claim="three levels, attention, labels, ported weights",
             reference="diffusers.UNet2DModel", reached=((mine(x, t, y) - expected).abs() / expected.abs().max()).max(),
             tolerance=1e-4, unit="relative")  # fmt: skip
    torch.testing.assert_close(mine(x, t), mine(x, t, torch.full((4,), classes)))  # None means "no label"


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 9), (33, 31)])
def test_any_size_is_kept_and_starts_at_zero(size: tuple[int, int]) -> None:
    net = UNet(2, (8, 16, 16), 1)
    x, t = torch.randn(2, 2, *size), torch.tensor([0.1, 0.9])
    assert torch.equal(net(x, t), torch.zeros_like(x))
    out = randomise(net)(x, t)
    assert out.shape == x.shape and float((out[0] - out[1]).abs().max()) > 0


def test_networks_use_their_conditions() -> None:
    for net, x in (
        (UNet(1, (8, 16), 1, 3), torch.randn(1, 1, 8, 8)),
        (ModulatedMLP((5,), 16, 2, 3), torch.randn(1, 5)),
    ):
        net = randomise(net)
        outs = [net(x, torch.tensor([t]), torch.tensor([y])) for t in (0.2, 0.8) for y in (0, 1)]
        assert all(not torch.allclose(a, b) for i, a in enumerate(outs) for b in outs[:i])


def test_widths_must_divide() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        UNet(1, (12,), 1)
