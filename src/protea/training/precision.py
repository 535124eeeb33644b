"""Where and in which numbers a model learns; always said in one plain line."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from protea.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively (emulation is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return False


def pick_device(name: str = "auto", *, require_gpu: bool = False) -> tuple[torch.device, str]:
    """The device, and why it was picked.

    Raises:
        ConfigError: the named device is absent, or a GPU is required and none is visible.

    >>> pick_device("cpu")
    (device(type='cpu'), 'asked for')
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name in ("auto", "", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda", local), "a CUDA device is visible" if name != "cuda" else "asked for"
        if require_gpu or name == "cuda":
            raise ConfigError(
                "A GPU was asked for, but torch sees none.",
                "Check the driver with `protea doctor`, or let it run on the CPU with --device cpu.",
            )
        return torch.device("cpu"), "no CUDA device is visible"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"The device {name!r} cannot be used ({str(error).splitlines()[0]}).", "Try: cpu, cuda."
        ) from None
    if require_gpu and device.type == "cpu":
        raise ConfigError("A GPU is required, but the device is 'cpu'.", "Leave out --require-gpu or --device cpu.")
    return device, "asked for"


def resolve(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of matrix products, and why: bfloat16 only where the hardware has it natively."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"The precision {precision!r} is not known.", "Known: auto, fp32, bf16.")
    if precision == "fp32":
        return torch.float32, "the default"
    if has_bf16(device):
        return torch.bfloat16, "the hardware has it natively"
    return torch.float32, "the hardware has no native bfloat16"


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Automatic mixed precision in bfloat16; nothing in float32."""
    return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext()


def describe(device: torch.device, dtype: torch.dtype | None, why: str) -> str:
    """One line: the device, and the dtype of matrix products with its reason (where there are any)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    numbers = f", {str(dtype).removeprefix('torch.')} ({why})" if dtype else ""
    return f"device: {device} ({name}){numbers}"


def compiled(objective: nn.Module) -> None:
    """A `prepare` for `Gradient`: torch.compile the networks that the model calls (its child modules)."""
    for child in objective.model.children():
        if type(child).forward is not nn.Module.forward and any(True for _ in child.parameters()):
            child.compile(dynamic=True)
