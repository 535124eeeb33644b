r"""Recurrent language models: LSTM or GRU layers on a residual stream (Mikolov et al. 2010; Graves 2013).

    x <- x + W_o RNN(RMSNorm(x))

What transformers replaced, here to be compared with: the state is small, and training goes token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

from protea.errors import ConfigError, nearest
from protea.models.autoregressive.architecture import Architecture
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.nn.block import Block, Branch
from protea.nn.norm import RMSNorm
from protea.nn.recurrent import GRUCell, LSTMCell, Recurrent
from protea.nn.tokens import TokenEmbedding

CELLS = {"lstm": LSTMCell, "gru": GRUCell}


@dataclass(frozen=True)
class RNNConfig:
    """`cell` is lstm or gru, of width d_hidden; `context` is the longest text (the network itself sets no limit)."""

    n_layers: int = 2
    d_model: int = 128
    d_hidden: int = 256
    cell: str = "lstm"
    context: int = 256
    norm_eps: float = 1e-5
    tie: bool = False


def build(config: RNNConfig, inputs: int, outputs: int) -> Decoder:
    """The network: `inputs` ids can be read, the first `outputs` of them predicted."""
    c = config
    if c.cell not in CELLS:
        raise ConfigError(f"There is no recurrent cell {c.cell!r}.", nearest(c.cell, CELLS))

    def block() -> Block:
        cell = CELLS[c.cell](c.d_model, c.d_hidden)
        return Block([Branch(RMSNorm(c.d_model, c.norm_eps), Recurrent(cell, c.d_model))])

    blocks = [block() for _ in range(c.n_layers)]
    norm = RMSNorm(c.d_model, c.norm_eps)
    return init_decoder(Decoder(TokenEmbedding(inputs, c.d_model), blocks, norm, outputs, c.tie))


def scaled(n_layers: int, d_model: int, context: int) -> RNNConfig:
    """Half the layers of a transformer, since each step of time costs one of every layer."""
    return RNNConfig(max(1, n_layers // 2), d_model, 2 * d_model, context=context)


ARCHITECTURE = Architecture(
    name="rnn",
    title="Recurrent network (LSTM or GRU)",
    source="Hochreiter & Schmidhuber 1997, Long short-term memory; Cho et al. 2014, GRU",
    config=RNNConfig,
    build=build,
    scaled=scaled,
)
