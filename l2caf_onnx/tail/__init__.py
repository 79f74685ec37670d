"""The tail as a torch module that agrees with onnxruntime, or a refusal that names the node."""

from .convert import TorchTail, to_torch

__all__ = ["TorchTail", "to_torch"]
