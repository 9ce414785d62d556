"""An exported model, run by ONNX Runtime: one file, NumPy in and out, and no PyTorch.

    model = OnnxModel("model.onnx")
    answer = model(images)  # uint8 (B, C, H, W)
    answer.probabilities  # (B, K), of model.classes

`medvitlib.export` writes such files. What model.json says of a run is in the file's metadata, so that it answers alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvitlib.errors import DataError, MedvitError
from medvitlib.jsonfile import BadJson, parse_json
from medvitlib.machine import cores
from medvitlib.models.model_json import ONNX_FIELDS, check_fit

PREFIX = "medvitlib."
"""Of our keys in a file's metadata; each value is JSON."""
DYNAMIC = "int8, dynamic"
"""A precision: what comes in is rounded with a range of its own in each call."""


class Answer(NamedTuple):
    """What the model makes of B images.

    Attributes:
        logits: (B, K) float32.
        probabilities: (B, K) float32, softmax(logits / temperature): calibrated, if the run was evaluated.
        features: (B, D) float32, what the last layer sees.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray


class OnnxModel:
    """A file of `medvit export`, ready for images.

    Args:
        path: the .onnx file.
        threads: of one call; all cores that this process may use, if not given.

    Attributes:
        info: what model.json said, and `precision`.
        classes: their names, in the order of the outputs.
        image_size, channels: height, width and channels (3: RGB) that go in.

    Raises:
        MedvitError: ONNX Runtime is not installed, the file is missing or damaged, or another program wrote it.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None):
        ort = runtime()
        path = Path(path)
        if not path.is_file():
            raise MedvitError(f"There is no file at {path}. `medvit export MODEL` writes one.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.log_severity_level = 3  # errors alone: a user can do nothing about the rest
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own have no base class in common
            reason = str(error).strip().splitlines()[0]
            raise MedvitError(f"{path} cannot be read ({reason}). Write it again: medvit export MODEL.") from error
        self.info = self._read_info(path)
        self.classes = list(self.info["classes"])
        self.image_size = tuple(self.info["preprocessing"]["image_size"])
        self.channels = self.info["preprocessing"]["channels"]

    @property
    def preprocessing(self):
        """The same as `Preprocessing`, whose module brings PyTorch."""
        from medvitlib.data import Preprocessing

        return Preprocessing(**self.info["preprocessing"])

    def _read_info(self, path: Path) -> dict[str, Any]:
        """Read the metadata; check it as a model.json, and against the network's inputs and outputs."""
        stored = self.session.get_modelmeta().custom_metadata_map
        stored = {key.removeprefix(PREFIX): value for key, value in stored.items() if key.startswith(PREFIX)}
        if not stored:
            raise MedvitError(f"{path} was written by another program. Expected a file of `medvit export`.")
        try:
            content = ", ".join(f"{json.dumps(key)}: {value}" for key, value in stored.items())
            info = parse_json("its metadata", f"{{{content}}}", ONNX_FIELDS)
            check_fit("its metadata", info)
            images, features = self.session.get_inputs()[0].shape[1:], self._width("features")
            expected = [info["preprocessing"]["channels"], *info["preprocessing"]["image_size"]]
            familiar = (info.get("prediction") or {}).get("familiar") or {"shape": [0, features]}
            for name, stated, found in (
                ("preprocessing", expected, images),
                ("classes", len(info["classes"]), self._width("logits")),
                ("prediction.familiar.shape", familiar["shape"][1], features),
            ):
                if stated != found and not isinstance(found, str):  # a text is a width that is not fixed
                    raise BadJson(f"its metadata: {name} is for {stated}; the network has {found}")
            return info
        except BadJson as error:
            raise MedvitError(f"{path} cannot be used: {error}. Write it again: medvit export MODEL.") from error

    def _width(self, output: str) -> int | str | None:
        """Columns of an output; None where there is none of this name."""
        return next((one.shape[-1] for one in self.session.get_outputs() if one.name == output), None)

    @property
    def architecture(self) -> dict:
        """Of the model that was exported."""
        return self.info["architecture"]

    def __call__(self, images: np.ndarray) -> Answer:
        """Outputs for uint8 images (B, C, height, width), RGB or grey; an image's do not depend on the others.

        Raises:
            DataError: images of another type, size or number of channels.
        """
        images = np.asarray(images)
        sizes = [(channels, *self.image_size) for channels in {1, self.channels}]  # grey serves a model of colour, too
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in sizes or not len(images):
            raise DataError(
                f"{images.dtype} images {images.shape} for a model of {self.channels} channel(s) and "
                f"{' x '.join(map(str, self.image_size))} px: expected uint8 (B, C, height, width)."
            )
        images = np.ascontiguousarray(np.broadcast_to(images, (len(images), self.channels, *self.image_size)))
        # dynamic rounding takes one range for all that comes in: together, images would change each other's results
        step = 1 if self.info["precision"] == DYNAMIC else len(images)
        found = [self._run(images[start : start + step]) for start in range(0, len(images), step)]
        return found[0] if len(found) == 1 else Answer(*map(np.concatenate, zip(*found, strict=True)))

    def _run(self, images: np.ndarray) -> Answer:
        return Answer(*self.session.run(list(Answer._fields), {"images": images}))


def runtime():
    """The package onnxruntime, which takes its time to import; MedvitError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MedvitError(f"ONNX Runtime is not installed ({error}): pip install onnxruntime") from None
    return onnxruntime


def decisions(probabilities: np.ndarray, info: dict) -> np.ndarray:
    """(B,) class numbers: of two the positive one from the stored threshold on, of more the likeliest."""
    if info["positive"] is None:
        return probabilities.argmax(axis=1)
    positive = info["classes"].index(info["positive"])
    threshold = info.get("thresholds", {}).get("recall", 0.5)
    return np.where(probabilities[:, positive] >= threshold, positive, 1 - positive)


def metadata(info: dict) -> Iterable[tuple[str, str]]:
    """Keys and values for a file's metadata, without the section about model.safetensors."""
    return ((PREFIX + key, json.dumps(value)) for key, value in info.items() if key != "weights")
