"""Operators that onnx2torch lacks or gets wrong, entered into its own registry; a family a file.

A family's functions take torch tensors and ONNX's attributes and are written to ONNX's specification as onnxruntime
carries it out; nothing here is believed before it agreed with onnxruntime (parity.py).
"""

from importlib import import_module

FAMILIES = (
    "shaping",
    "elementwise",
    "linear",
    "reducing",
    "indexing",
    "convolving",
    "pooling",
    "normalising",
    "resizing",
    "sampling",
    "signalling",
    "quantising",
    "quantised",
    "recurrent",
    "attention",
    "contrib",
    "contrib_shapes",
    "contrib_attention",
)


def install() -> None:
    """Enter every family into onnx2torch's registry; once is enough, more does no harm."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
