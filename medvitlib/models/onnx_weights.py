"""A DINOv2 backbone exported to ONNX, read back as parameters under timm's names. NumPy and onnx only.

The exporter kept the names of biases, norms, LayerScale, patch projection and class token, but not those of
the linear weights (`onnx::MatMul_1966`) and of the position embedding: these take their name from the node
that reads them.
"""

import re
from collections.abc import Mapping

import numpy as np

from medvitlib.errors import WeightsError

EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
# in each block, timm's name to the exporter's
BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}
LINEAR = {  # weights to transpose; several are concatenated
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


def dinov2_from_onnx(content: bytes) -> dict[str, np.ndarray]:
    """Parameters of the backbone in an ONNX file, as float32 under timm's names, LayerScale (`ls1.gamma`) included.

    Raises:
        WeightsError: not an ONNX file, or one without such a backbone; lists all that is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load_from_string(content).graph
    except DecodeError as error:
        raise WeightsError(f"not an ONNX file ({error}). Delete the download and fetch it again.") from None
    stored = {tensor.name: tensor for tensor in graph.initializer}
    # the nodes' names are paths, '/backbone/encoder/layer.0/mlp/fc1/MatMul'
    read_by = {node.name: name for node in graph.node for name in node.input if name in stored}
    missing = []

    def array(name: str) -> np.ndarray:
        if name not in stored:
            missing.append(name)
            return np.zeros((1, 1), dtype=np.float32)
        return onnx.numpy_helper.to_array(stored[name]).astype(np.float32)

    def linear(path: str) -> np.ndarray:  # a MatMul's right-hand side is (in, out)
        node = "/backbone/" + re.sub(r"\.(?!\d)", "/", path) + "/MatMul"
        return array(read_by.get(node, f"the weight read by {node}")).T

    state = {ours: array(f"backbone.{theirs}") for ours, theirs in EMBEDDINGS.items()}
    patches = array(read_by.get("/backbone/embeddings/Reshape_1", "the patches' position embedding"))
    class_and_position = array(read_by.get("/backbone/embeddings/Concat_6", "the class token's position embedding"))
    if not missing:
        state["pos_embed"] = np.concatenate([class_and_position, patches], axis=1)
    depth = 1 + max(
        (int(m[1]) for name in stored if (m := re.match(r"backbone\.encoder\.layer\.(\d+)\.", name))), default=0
    )
    for i in range(depth):
        theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
        for name, source in BLOCK.items():
            state[f"{ours}.{name}"] = array(f"backbone.{theirs}.{source}")
        for name, sources in LINEAR.items():
            state[f"{ours}.{name}.weight"] = np.concatenate([linear(f"{theirs}.{source}") for source in sources])
            state[f"{ours}.{name}.bias"] = np.concatenate([array(f"backbone.{theirs}.{s}.bias") for s in sources])
    if missing:
        raise WeightsError(f"no DINOv2 backbone in this ONNX file; missing ({len(missing)}): " + "; ".join(missing))
    # safetensors writes an array's memory as it lies, whatever its strides say
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def fold_layer_scale(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Multiply each LayerScale into the linear layer before it, which makes a plain pre-norm Vision Transformer.

    gamma * (W x + b) = (gamma W) x + gamma b, exact up to rounding. Works on arrays and on tensors alike.
    """
    folded = {name: value for name, value in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        if name.endswith(".gamma"):
            block, scale, _ = name.rsplit(".", 2)
            before = f"{block}.attn.proj" if scale == "ls1" else f"{block}.mlp.fc2"
            for parameter, factor in ((f"{before}.weight", gamma[:, None]), (f"{before}.bias", gamma)):
                if parameter in folded:  # what is missing is reported by whoever loads the result
                    folded[parameter] = folded[parameter] * factor
    return folded
