"""An ONNX file's weights in eight bits, for ONNX Runtime on CPUs.

The weights are rounded once, each output with a scale of its own. What comes in is rounded in each call with the range
it then has (dynamic), or with one that was measured on images beforehand (static; Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3). The last layer,
norms, attention's own products and sums stay as they are.
"""

from pathlib import Path

import numpy as np

from medvitlib.errors import AdaptationError

STATIC = "int8, static"
"""A precision: what comes in is rounded with ranges that are fixed."""


def rounded(source: Path, target: Path, images: np.ndarray | None = None) -> None:
    """Write a file with the weights of another in bytes.

    Weights go from -64 to 63, half of what a byte holds: on CPUs without VNNI pairs of products would overflow
    otherwise, and a file would answer otherwise on another machine.

    Args:
        source: a file with one input, `images`.
        target: the file to write.
        images: uint8 (N, C, H, W), from which the ranges of what comes in are taken; None for dynamic rounding.

    Raises:
        AdaptationError: there is nothing to round.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    simple = target.with_name("simple.onnx")
    quant_pre_process(
        source, simple, skip_symbolic_shape=True
    )  # constants are computed, so that weights are seen as such
    graph = onnx.load(simple, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    kinds = {"MatMul"} if images is None else {"MatMul", "Conv"}
    names = [node.name for node in graph.node if node.op_type in kinds and node.input[1] in stored]
    if not names:
        raise AdaptationError(
            "This model has no linear layers inside, whose weights int8 would round. Convolutions can be rounded with "
            "ranges of real images alone: pass calibration= (--calibrate)."
        )
    common = {"nodes_to_quantize": names, "per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    if images is None:
        quantize_dynamic(simple, target, **common)
        return
    quantize_static(
        simple,
        target,
        _OneByOne(images),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        **common,
    )


class _OneByOne:
    """Images as the calibration asks for them."""

    def __init__(self, images: np.ndarray):
        self._rest = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._rest, None)
        return None if image is None else {"images": image[None]}
