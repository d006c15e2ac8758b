"""Dense layers in float32, where oneDNN multiplies faster than MKL does.

PyTorch hands float32 products on a CPU to MKL. On AMD's processors oneDNN, which PyTorch brings
along for other types, is a tenth faster at those of a forward pass and of its way back, and adds
the bias on the way.
"""

from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@cache
def prefers_onednn() -> bool:
    """True on AMD's processors, where PyTorch has both libraries to choose from."""
    described = Path("/proc/cpuinfo")
    amd = described.exists() and "AuthenticAMD" in described.read_text(errors="replace")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return amd and has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def exchange(module: nn.Module) -> None:
    """Makes a dense layer multiply with oneDNN, in place; its weights and all else stay."""
    if type(module) in _KINDS:
        module.__class__ = _KINDS[type(module)]


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not _serves(input, self.weight):
            return super().forward(input)
        return _dense(input, self.weight.t(), self.bias)


class _Conv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        if not _serves(x, self.weight):
            return cast(Tensor, super().forward(x))
        return _dense(x, self.weight, self.bias)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D}


def _serves(values: Tensor, weight: Tensor) -> bool:
    """False for other types and devices, and where the compiler looks for its own way."""
    plain = values.dtype == weight.dtype == torch.float32 and values.device.type == "cpu"
    narrowed = torch.is_autocast_enabled("cpu")
    return plain and not narrowed and values.numel() > 0 and not torch.compiler.is_compiling()


def _dense(values: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K) values times a (K, N) matrix, plus (N,)."""
    found = _Dense.apply(values.reshape(-1, values.shape[-1]), matrix, bias)
    return cast(Tensor, found).view(*values.shape[:-1], matrix.shape[1])


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, matrix)
        return _multiply(rows, matrix, bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        rows, matrix = ctx.saved_tensors
        slope, wanted = outer[0].contiguous(), ctx.needs_input_grad
        return (
            _multiply(slope, matrix.t()) if wanted[0] else None,
            # A sum over all rows, which MKL is as quick at.
            rows.t() @ slope if wanted[1] else None,
            slope.sum(0) if wanted[2] else None,
        )


def _multiply(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, K) @ (K, N) + (N,). The rows are dense: of others oneDNN makes a slow case."""
    multiply = torch.ops.mkldnn._linear_pointwise
    return cast(Tensor, multiply(rows.contiguous(), matrix.t(), bias, "none", [], ""))
