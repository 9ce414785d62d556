"""A trained model as one ONNX file, in float32 or in eight bits, that ONNX Runtime answers with: no PyTorch needed.

    exported = export("runs/my-run", check="new_images/")
    print(exported)
    OnnxModel(exported.path)(images).probabilities

In goes `images`, uint8 (B, C, height, width), RGB or grey, for any B: what a decoder gives, resized to the model's
size. The normalisation is inside. Out come `logits` (B, K), `probabilities` (B, K), which are softmax(logits /
temperature), and `features` (B, D), what the last layer sees. Classes, preprocessing, temperature, thresholds and all
else that model.json says are in the file's metadata, as JSON, each under "medvitlib." and its key there.

A file is kept only if its logits are PyTorch's to 1e-4, for one image and for several.
"""

import os
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medvitlib.data import Preprocessing, normalise
from medvitlib.data.decode import Unreadable
from medvitlib.data.incoming import Source, incoming, read
from medvitlib.data.phantoms import picture
from medvitlib.errors import DataError, MedvitError
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.evaluation.inputs import percent
from medvitlib.models.int8 import Int8Linear
from medvitlib.models.onnx_int8 import STATIC, rounded
from medvitlib.models.onnx_model import DYNAMIC, Answer, OnnxModel, decisions, metadata, runtime
from medvitlib.models.saved import load_model
from medvitlib.models.zoo import head_of
from medvitlib.predict import model_folder
from medvitlib.teaching import FOLDER as TEACHING

TOLERANCE = 1e-4
"""Of logits, from PyTorch's."""
OPSET = 17
"""The first with LayerNormalization; ONNX Runtime 1.14 (2023) reads it."""
RENDERED, CHECKED, CALIBRATED = 8, 32, 64
"""Images that a file is checked on, if none are given or some are, and that static rounding takes its ranges from."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how near it is to the model.

    Attributes:
        path: of the file.
        precision: "float32", "int8, dynamic" or "int8, static".
        images: it was checked on; rendered ones, if none were given.
        logits: largest difference from PyTorch's, of the float32 file (an int8 file is made of it).
        probabilities: largest difference of this file's calibrated probabilities.
        agreement: share of images with the same decision, at the stored threshold.
        megabytes, before: of this file, and of the weights it was made of.
    """

    path: Path
    precision: str
    images: int
    logits: float
    probabilities: float
    agreement: float
    megabytes: float
    before: float

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.precision}, {self.megabytes:.1f} MB (weights: {self.before:.1f} MB)",
            f"checked on {self.images} images against PyTorch: logits differ by at most {self.logits:.1g}"
            + ("" if self.precision == "float32" else " before rounding"),
        ]
        if self.precision != "float32":
            lines.append(
                f"rounded: probabilities differ by at most {self.probabilities:.3f}; "
                f"{percent(self.agreement)} of decisions are the same"
            )
        return "\n".join(lines)


def export(
    model: str | Path,
    out: str | Path | None = None,
    *,
    int8: bool = False,
    calibration: Source | None = None,
    check: Source | None = None,
    force: bool = False,
) -> Exported:
    """Write a run's model as ONNX, and check the file against PyTorch.

    Args:
        model: a run's folder or name, one with its model.safetensors and model.json, or "teaching".
        out: the file; `model.onnx` or `model-int8.onnx` in the run's folder, if not given.
        int8: round the weights to bytes, a quarter of the size. Linear layers alone, with ranges taken in each call
            (dynamic); with `calibration` convolutions, too, and ranges are fixed (static).
        calibration: images like those it will see, not the test set's; as `Predictor.predict` takes them, of which 64.
        check: images to compare on, likewise, of which 32; if not given, a few rendered ones.
        force: replace `out` where it exists.

    Raises:
        MedvitError: no such model, one that is in int8 already or that cannot be exported, a file that is there or
            cannot be written, ONNX Runtime is not installed, or logits that differ by more than 1e-4.
        DataError: images that cannot be read.
    """
    runtime()
    folder = model_folder(model)
    out = _target(out, folder, int8, force)
    if calibration is not None and not int8:
        raise MedvitError("Images for calibration are for int8: a float32 file has nothing to calibrate.")
    network, info = load_model(folder)
    if any(isinstance(module, Int8Linear) for module in network.modules()):
        raise MedvitError(f"The model in {folder} is in int8 already: export the one it was made of, with int8.")
    images = _images(check, network.preprocessing, CHECKED)
    expected = _expected(network, images)  # (N, K)
    precision = "float32" if not int8 else DYNAMIC if calibration is None else STATIC
    with tempfile.TemporaryDirectory() as scratch:
        whole, last = Path(scratch, "float32.onnx"), Path(scratch, "last.onnx")
        _write(network, float(info.get("temperature", 1.0)), images, whole)
        _describe(whole, whole, {**info, "precision": "float32"})
        found = _checked(whole, images, expected)
        apart = float(np.abs(found.logits - expected).max())
        if not apart <= TOLERANCE:
            raise MedvitError(
                f"The exported file's logits differ from PyTorch's by {apart:.2g}, more than {TOLERANCE:g}: it was not "
                f"kept. {type(network).__name__} may do something that depends on the values of its input."
            )
        if int8:
            ranges = None if calibration is None else _images(calibration, network.preprocessing, CALIBRATED)
            rounded(whole, last, ranges)
            _describe(last, last, {**info, "precision": precision})
            found = _checked(last, images, expected)
        _keep(last if int8 else whole, out)
    probabilities = apply_temperature(expected, float(info.get("temperature", 1.0)))
    return Exported(
        path=out,
        precision=precision,
        images=len(images),
        logits=apart,
        probabilities=float(np.abs(found.probabilities - probabilities).max()),
        agreement=float((decisions(found.probabilities, info) == decisions(probabilities, info)).mean()),
        megabytes=out.stat().st_size / 1e6,
        before=sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6,
    )


class _Whole(nn.Module):
    """From uint8 images to what `Answer` names."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (model.preprocessing.mean, model.preprocessing.std)
        )
        self.register_buffer("scale", 1 / (255 * std))  # (C, 1, 1)
        self.register_buffer("shift", -mean / std)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen: list[torch.Tensor] = []
        hook = head_of(self.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.model(images.float() * self.scale + self.shift)
        finally:
            hook.remove()
        return logits, (logits / self.temperature).softmax(dim=1), seen[-1].flatten(1)


def _write(model: nn.Module, temperature: float, images: np.ndarray, path: Path) -> None:
    """The exporter that traces: it needs no package besides, and a second where the newer one takes ten."""
    names = list(Answer._fields)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # that it is the older exporter, and each branch on a shape; the file is compared afterwards
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Whole(model, temperature).eval(),
                (torch.from_numpy(images[[0, 0]]),),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=names,
                dynamic_axes={name: {0: "batch"} for name in ("images", *names)},
            )
    except (RuntimeError, TypeError, ValueError) as error:  # torch.onnx's own are RuntimeErrors
        reason = str(error).strip().splitlines()[0]
        raise MedvitError(
            f"{type(model).__name__} cannot be written as ONNX by torch {torch.__version__}: {reason}"
        ) from error


def _describe(source: Path, target: Path, info: dict) -> None:
    """Put in what model.json says, and what goes in and comes out in words."""
    import onnx

    proto = onnx.load(source)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(metadata(info)))
    height, width = info["preprocessing"]["image_size"]
    texts = {
        "images": f"0 to 255, {'RGB' if info['preprocessing']['channels'] == 3 else 'grey'}, {height} x {width} px",
        "logits": "a column each: " + ", ".join(info["classes"]),
        "probabilities": "softmax(logits / temperature)",
        "features": "what the last layer sees",
    }
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = texts[value.name]
    onnx.save(proto, target)


def _checked(path: Path, images: np.ndarray, expected: np.ndarray) -> Answer:
    """The file's outputs for all images at once; of the first those of it alone, where they are further off."""
    model = OnnxModel(path)
    several, alone = model(np.concatenate([images, images[:1]])), model(images[:1])  # several, also of a single one
    found = Answer(*(output[:-1] for output in several))
    if np.abs(alone.logits - expected[:1]).max() > np.abs(found.logits[:1] - expected[:1]).max():
        for whole, first in zip(found, alone, strict=True):
            whole[:1] = first
    return found


@torch.inference_mode()
def _expected(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits (N, K) as `Predictor` computes them in float32."""
    batches = torch.from_numpy(images).split(8)
    return torch.cat([model(normalise(batch, model.preprocessing)) for batch in batches]).numpy()


def _images(source: Source | None, expected: Preprocessing, most: int) -> np.ndarray:
    """uint8 (N, C, H, W): of what was given, evenly spread, at most so many; else rendered ones."""
    if source is None:
        family = "phantom/wbc4" if expected.channels == 3 else "phantom/cxr"
        found = [picture(family, f"patient{i:04d}/0", expected.image_size)[0] for i in range(RENDERED)]
    else:
        names = list(incoming(source)[0])
        chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]
        found, reasons = [], []
        for name, given in chosen:
            try:
                image = read(name, given, expected).pixels
            except Unreadable as reason:
                reasons.append(f"{name}: {reason}")
                continue
            found.append(np.broadcast_to(image, (*image.shape[:2], expected.channels)))
        if not found:
            raise DataError(f"None of {len(chosen)} images to compare on can be read; {reasons[0]}.")
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2))


def _target(out: str | Path | None, folder: Path, int8: bool, force: bool) -> Path:
    """The file to write."""
    if out is None and folder == TEACHING:
        raise MedvitError("The teaching model lies inside the library: say where its file goes, such as teaching.onnx.")
    out = folder / ("model-int8.onnx" if int8 else "model.onnx") if out is None else Path(out)
    if out.suffix != ".onnx":
        raise MedvitError(
            f"{out} does not end in .onnx, by which other programs know the file: {out.with_suffix('.onnx')}?"
        )
    if out.exists() and (out.is_dir() or not force):
        raise MedvitError(f"{out} exists already: choose another name, or replace it with --force (force=True).")
    if not out.parent.is_dir():
        raise MedvitError(f"There is no folder {out.parent} to write {out.name} into: make it first.")
    return out


def _keep(source: Path, out: Path) -> None:
    """Copied aside, then renamed: whoever reads the file sees all of it."""
    part = out.with_name(out.name + ".part")
    try:
        part.write_bytes(source.read_bytes())
        os.replace(part, out)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise MedvitError(f"{out} cannot be written ({error.strerror or error}).") from error
