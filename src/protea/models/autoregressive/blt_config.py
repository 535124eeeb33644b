"""The sizes of a Byte Latent Transformer."""

from __future__ import annotations

from dataclasses import dataclass

from protea.errors import ConfigError

Stack = tuple[int, int, int, int, int]  # layers, width, heads, key heads, width of the perceptrons


@dataclass(frozen=True)
class BLTConfig:
    """A stack is (layers, width, heads, key heads, d_ff); encoder and decoder are equally wide.

    d_model is the latent's width. `k` vectors a patch, `ngrams` of `buckets` rows each, patches of `patch` bytes on
    average by the rule "global" or "relative" (or at `threshold` nats), of `longest` at most. `windows` and
    `rope_theta` are of the model and of the patcher (windows: of the local blocks).
    """

    encoder: Stack = (1, 64, 2, 2, 176)
    latent: Stack = (4, 128, 4, 4, 352)
    decoder: Stack = (2, 64, 2, 2, 176)
    patcher: Stack = (2, 64, 2, 2, 176)
    context: int = 256
    k: int = 2
    ngrams: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    buckets: int = 2048
    patch: float = 4.5
    rule: str = "global"
    threshold: float | None = None
    longest: int | None = None
    windows: tuple[int | None, int | None] = (512, 512)
    rope_theta: tuple[float, float] = (500000.0, 10000.0)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.encoder[1] != self.decoder[1]:
            raise ConfigError(
                f"The encoder is {self.encoder[1]} wide and the decoder {self.decoder[1]}.", "Make them equally wide."
            )

    @property
    def d_model(self) -> int:
        """Width of the latent transformer."""
        return self.latent[1]
