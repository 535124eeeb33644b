"""Language models as ONNX graphs: token ids (batch, time) to logits (batch, time, V), both axes free."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from protea.errors import MissingExtra, NotSupported
from protea.models.autoregressive.language import LanguageModel
from protea.training import files


class _Graph(nn.Module):
    """What is traced: the network without its memory."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


def write_onnx(path: Path, model: LanguageModel) -> Path:
    """Write one file, atomically.

    Raises:
        MissingExtra: `onnx` or `onnxscript` is not installed.
        NotSupported: the network cannot be traced with free axes.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except Exception as error:
        raise MissingExtra("onnxscript", "onnx", error) from None
    axes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("time", min=2, max=model.context)}
    example = torch.zeros(2, min(5, model.context), dtype=torch.int64)
    noise = logging.getLogger("torch.onnx")
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = torch.export.export(
                _Graph(model.net).eval(), (example,), dynamic_shapes={"tokens": axes}, strict=False
            )
            program = torch.onnx.export(
                graph, (), dynamo=True, verbose=False, input_names=["tokens"], output_names=["logits"]
            )
    except Exception as error:
        raise NotSupported(
            f"This network cannot be traced into an ONNX graph ({type(error).__name__}: {str(error)[:300]}).",
            "Export with --to hf instead.",
        ) from error
    finally:
        noise.setLevel(level)
    assert program is not None
    files.write(path, lambda partial: program.save(str(partial), external_data=False))
    return path
