"""Fourier transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .registry import Node, Outputs, ints, op, positive


@op("DFT", static=(1, 2))
def dft(node: Node, x: Tensor, length: Any = None, axis: Any = None) -> Outputs:
    along = node.get("axis", 1) if node.version < 20 else (ints(axis)[0] if axis is not None else -2)
    along = positive(along, x.ndim)
    count = ints(length)[0] if length is not None else None
    one_sided, inverse = bool(node.get("onesided", 0)), bool(node.get("inverse", 0))
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
    if inverse and one_sided:
        real: Tensor = torch.fft.irfft(values, n=count, dim=along)
        return real[..., None]
    if inverse:
        return torch.view_as_real(torch.fft.ifft(values, n=count, dim=along))
    if one_sided and not values.is_complex():
        return torch.view_as_real(torch.fft.rfft(values, n=count, dim=along))
    result = torch.fft.fft(values, n=count, dim=along)
    if one_sided:
        result = result.narrow(along, 0, result.shape[along] // 2 + 1)
    return torch.view_as_real(result.contiguous())


@op("STFT", static=(1, 3))
def stft(node: Node, x: Tensor, step: Any, window: Tensor | None = None, length: Any = None) -> Outputs:
    size = ints(length)[0] if length is not None else (len(window) if window is not None else x.shape[1])
    frames = x.unfold(1, size, ints(step)[0])  # (N, frames, 1 or 2, size)
    if window is not None:
        frames = frames * window
    values = torch.complex(frames[:, :, 0], frames[:, :, 1]) if frames.shape[2] == 2 else frames[:, :, 0]
    if node.get("onesided", 1) and not values.is_complex():
        return torch.view_as_real(torch.fft.rfft(values))
    return torch.view_as_real(torch.fft.fft(values))
