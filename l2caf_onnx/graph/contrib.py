"""What onnxruntime's own operators are to shape inference, which knows none of them and stops at the first.

Quantised models of the QOperator kind, and graphs that an optimiser has fused, are full of them. Only type and shape
count here: an element-wise operator of any kind is an Identity.
"""

from __future__ import annotations

import onnx

# Operator -> a standard one, and which inputs it reads.
_ALIKE: dict[str, tuple[str, list[int]]] = {
    **dict.fromkeys(["QLinearAdd", "QLinearMul"], ("Add", [0, 3])),
    **dict.fromkeys(["QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"], ("Identity", [0])),
    **dict.fromkeys(["Gelu", "FastGelu", "BiasGelu", "QuickGelu"], ("Identity", [0])),
    **dict.fromkeys(["LayerNormalization", "SimplifiedLayerNormalization"], ("Identity", [0])),
    **dict.fromkeys(["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"], ("Identity", [0])),
    "QLinearAveragePool": ("AveragePool", [0]),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", [0]),
    "QLinearConcat": ("Concat", []),  # every third input from the third on
    "QuantizeLinear": ("QuantizeLinear", [0, 1, 2]),
    "DequantizeLinear": ("DequantizeLinear", [0, 1, 2]),
    "QGemm": ("Gemm", [0, 3]),
    "FusedConv": ("Conv", [0, 1, 2]),
    "FusedGemm": ("Gemm", [0, 1, 2]),
    "FusedMatMul": ("MatMul", [0, 1]),
}
# Attributes that change the shape in a way that the standard operator cannot say.
_BEYOND = {"channels_last", "transA", "transB", "transBatchA", "transBatchB"}
_KEPT = {
    "Conv": ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    "AveragePool": ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
    "Gemm": ("transA", "transB"),
    "Concat": ("axis",),
    "QuantizeLinear": ("axis",),
    "DequantizeLinear": ("axis",),
}


def is_onnxruntimes(node: onnx.NodeProto, opset: int) -> bool:
    """Whether this is an operator of onnxruntime's own; its optimiser writes two of them into ONNX's own domain."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type == "SimplifiedLayerNormalization" or (node.op_type == "LayerNormalization" and opset < 17)
    return bool(node.domain == "com.microsoft")


def stand_in(node: onnx.NodeProto, opset: int) -> onnx.NodeProto | None:
    """A standard node with the type and shape of the first output of `node`; None where there is none or no need."""
    if not is_onnxruntimes(node, opset) or node.op_type not in _ALIKE:
        return None
    op_type, positions = _ALIKE[node.op_type]
    kept = _KEPT.get(op_type, ())
    if any(a.name in _BEYOND and a.name not in kept and a.i for a in node.attribute):
        return None
    if node.op_type == "QGemm" and (len(node.input) < 9 or not node.input[7]):
        return None  # without a scale it gives floats
    positions = positions or list(range(2, len(node.input), 3))
    inputs = [node.input[p] for p in positions if p < len(node.input)]
    new = onnx.helper.make_node(op_type, inputs, [node.output[0]])
    new.attribute.extend(a for a in node.attribute if a.name in kept)
    return new
