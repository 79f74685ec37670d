"""`python -m l2caf_onnx`, the same as `l2caf-onnx`."""

from .cli import main

main()
