"""The next image: what a trained model says of a path, a folder, an array, a DICOM file or an address.

    predictor = Predictor("runs/my-run")
    for answer in predictor.predict("new_images/"):
        print(answer.name, answer.label, answer.sentence())

A run's model.safetensors and model.json are read, and the pretrained weights that they refer to; no code comes with
them. Images pass one batch at a time, so memory is the same for ten and for a hundred thousand.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from threading import get_ident

import numpy as np
import torch

from medvitlib.data import normalise
from medvitlib.data.decode import Unreadable
from medvitlib.data.folder import readable
from medvitlib.data.incoming import Given, Source, incoming, read
from medvitlib.data.read_image import Picture
from medvitlib.errors import DataError, MedvitError, printable
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.evaluation.conformal import Conformal
from medvitlib.evaluation.inputs import percent
from medvitlib.jsonfile import csv_line
from medvitlib.models.convert import load_converted
from medvitlib.models.onnx_model import OnnxModel
from medvitlib.models.saved import load_model
from medvitlib.models.saved import model_folder as run_folder
from medvitlib.models.zoo import head_of
from medvitlib.outliers import Familiar
from medvitlib.progress import track
from medvitlib.teaching import FOLDER as TEACHING
from medvitlib.training.features import hardware, side_by_side

NOTICE = "Research software, no medical device: not for diagnosis."
RULES = {
    "0.5": "one half",
    "recall": "chosen for recall on validation",
    "published": "published rule, on validation",
    "certified": "certified on validation",
}
UNCHOSEN = "one half, none was chosen"
NOT_PREPARED = "It was not prepared: evaluate(run, parts), with the split the model was trained on, does it."


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image.

    Attributes:
        name: path or address, or the position in an array.
        probabilities: class -> probability, calibrated; empty where the image could not be read.
        label: the decision: of two classes the positive one from the threshold on, of more the likeliest.
        threshold, rule: that decided, and where it comes from (see `Predictor.rule`); nan for more than two classes.
        classes: the set that holds the true class as often as `Predictor.sets` says; None where none was calibrated.
        distance, unlike: from the training images, and whether it exceeds the limit; nan and None where not checked.
        positive: the class whose probability is compared with the threshold; None for more than two classes.
        error: why there is no answer; empty otherwise.
        image: uint8 (H, W, C), as the model saw it.
        note: what else is to be known of how it was read; empty otherwise.
    """

    name: str
    probabilities: dict[str, float]
    label: str
    threshold: float
    rule: str
    classes: tuple[str, ...] | None
    distance: float
    unlike: bool | None
    positive: str | None = None
    error: str = ""
    image: np.ndarray | None = None
    note: str = ""

    def row(self) -> dict:
        """Plain values, a column each, for a CSV."""
        row = {"image": readable(self.name), "decision": self.label}
        row |= {f"p_{name}": f"{p:.6g}" for name, p in self.probabilities.items()}
        if self.error:
            return (
                row
                | dict.fromkeys(("threshold", "rule", "set", "distance", "unlike", "note"), "")
                | {"error": self.error}
            )
        row |= {"threshold": "" if math.isnan(self.threshold) else f"{self.threshold:.6g}", "rule": self.rule}
        row["set"] = "not calibrated" if self.classes is None else " or ".join(self.classes) or "no class"
        row["distance"] = "not checked" if self.unlike is None else f"{self.distance:.4g}"
        row["unlike"] = "not checked" if self.unlike is None else int(self.unlike)
        return row | {"note": self.note, "error": ""}

    def sentence(self) -> str:
        """The answer in words, with what speaks against believing it."""
        if self.error:
            return f"no answer: {self.error}"
        if self.positive is None:
            said = f"{self.label} (probability {self.probabilities[self.label]:.3f}, {self.rule})"
        else:
            p = self.probabilities[self.positive]
            side = "at or above" if p >= self.threshold else "below"
            said = f"{self.label}: p({self.positive}) = {p:.3f}, {side} {self.threshold:.3f} ({self.rule})"
        if self.classes is not None and self.classes != (self.label,):
            held = " or ".join(self.classes) if self.label in self.classes else f"only {', '.join(self.classes)}"
            said += f"; its set holds {held}" if self.classes else "; like no class it was taught"
        said += f"; {self.note}" if self.note else ""
        if self.unlike is None:
            return f"{said}; not checked for being unlike the training images"
        return said + ("; UNLIKE the training images: do not rely on this" if self.unlike else "")


class Predictor:
    """A trained model that is ready for images.

    Args:
        folder: a run's or its name, one with its model.safetensors and model.json, or "teaching": the committed model;
            or an .onnx file of `export`, which ONNX Runtime answers with on the CPU; or, with `classes`, a file of
            `convert`, whose images are prepared as its architecture was published.
        threshold: for two classes only: "0.5", "recall", "published" or "certified" as stored, or a number from 0 to 1;
            None for "recall", and of a converted file, which stores none, for 0.5.
        classes: of a converted file: names in the order of its outputs.
        positive: of a converted file of two classes: the one that the threshold is for.
        device, precision: as `fit` takes them.

    Attributes:
        threshold, rule: of the decisions, and in words where it comes from.
        sets, familiar: what gives the set of classes, and the distance from the training images; None where `evaluate`
            did not store it. `missing` says why.

    Raises:
        MedvitError: files that are missing or damaged, classes that do not fit, or a threshold that does not exist.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threshold: str | float | None = None,
        classes: Sequence[str] = (),
        positive: str | None = None,
        device: str | torch.device | None = None,
        precision: torch.dtype | str | None = "auto",
    ):
        self.device, self.dtype = hardware(device, precision)
        self._seen: dict[int, torch.Tensor] = {}  # thread -> what the last layer was given
        if str(folder).endswith(".onnx"):
            self.model = OnnxModel(folder)
            info = self.model.info
        else:
            self.model, info = (
                load_converted(folder, classes, positive) if classes else load_model(model_folder(folder))
            )
            self.model.to(self.device).eval()
            head_of(self.model).register_forward_pre_hook(self._see)
        self.classes, self.positive = list(info["classes"]), info["positive"]
        self.temperature = info.get("temperature", 1.0)
        asked = threshold if threshold is not None else "0.5" if classes and positive else "recall"
        self.threshold = self._threshold(info, asked)
        chosen = UNCHOSEN if classes and threshold is None else RULES.get(str(asked), "as given")
        self.rule = chosen if self.positive is not None else "the largest"
        stored = info.get("prediction") or {}
        self.sets = Conformal(**stored["sets"]) if stored.get("sets") else None
        self.familiar = Familiar.from_dict(stored["familiar"]) if stored.get("familiar") else None
        self._no_sets = f"not calibrated. {' '.join(stored.get('refused', [])) or NOT_PREPARED}"
        self._no_check = f"not checked. {stored.get('unchecked') or NOT_PREPARED}"

    @property
    def missing(self) -> list[str]:
        """For each check that this model cannot make, a sentence with the reason and, where one can be had, the way."""
        found = [f"Sets of classes: {self._no_sets}"] if self.sets is None else []
        unlike = f"Whether images are unlike the training images: {self._no_check}"
        return [*found, unlike] if self.familiar is None else found

    def __str__(self) -> str:
        decision = "the likeliest class"
        if self.positive is not None:
            decision = f"{self.positive} from {self.threshold:.3f} on ({self.rule})"
        sets = self._no_sets
        if self.sets is not None:
            each = "of each class" if self.sets.by == "class" else "of all classes together"
            behind = ", ".join(f"{n}" for n in self.sets.patients)
            sets = f"hold the true class for {percent(self.sets.coverage)} of new patients {each} (from {behind})"
        unlike = self._no_check
        if self.familiar is not None:
            unlike = f"above {self.familiar.limit:.2f}; called of usual images: {self.familiar.measured}"
        size = " × ".join(map(str, self.model.preprocessing.image_size))
        rows = {
            "model": f"{self.model.architecture['name']}, {size} px",
            "classes": ", ".join(self.classes),
            "decides": f"{decision}; temperature {self.temperature:.3f}",
            "sets": sets,
            "unlike": unlike,
        }
        return "\n".join(f"{name:8s} {text}" for name, text in rows.items())

    def predict(
        self, source: Source, *, batch_size: int = 32, allow_private: bool = False, quiet: bool = False
    ) -> Iterator[Prediction]:
        """An answer for each image, as they come; one that cannot be read has its reason in `error`.

        Args:
            source: a path of an image or folder, an http(s) address, the bytes of a file, uint8 (H, W), (H, W, C) or
                (N, H, W, C), or a list of these.
            allow_private: fetch from this machine's network, too.

        Raises:
            DataError: nothing at that path, a folder without images, an array that holds none, or a batch size below 1.
        """
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: expected 1 or more.")
        names, total = incoming(source)
        given = iter(lambda: list(islice(names, batch_size)), [])
        first = list(islice(given, 2))

        def answers(some: list[tuple[str, Given]]) -> list[Prediction]:
            images = [self._read(name, one, allow_private) for name, one in some]
            return list(self._answers([name for name, _ in some], images))

        # a batch on each core, which decodes one while the other computes; ONNX Runtime has threads of its own
        several = len(first) > 1 and self.device.type == "cpu" and not isinstance(self.model, OnnxModel)
        found = chain.from_iterable((side_by_side if several else map)(answers, chain(first, given)))
        yield from found if quiet else track(found, "Predicting", total=total)

    def decide_again(self, answer: Prediction) -> Prediction:
        """The same answer at the threshold as it now is."""
        if answer.error:
            return answer
        p = np.array(list(answer.probabilities.values()))
        return replace(answer, label=self._decide(p), threshold=self.threshold, rule=self.rule)

    def _see(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._seen[get_ident()] = inputs[0].detach()

    def _threshold(self, info: dict, asked: str | float) -> float:
        if self.positive is None:
            if asked != "recall":  # the default
                raise MedvitError(
                    f"threshold={asked!r}: a threshold is for two classes. This model has {len(self.classes)} and "
                    "decides for the most probable one: leave it out."
                )
            return float("nan")
        stored = info.get("thresholds", {})
        if isinstance(asked, str) and asked in stored:
            return stored[asked]
        if asked in ("recall", "published", "certified"):
            known = "no reason is stored." if stored else "the model was not evaluated. Call evaluate(run, parts)."
            reason = info.get("no_threshold", {}).get(asked, known)
            others = " or ".join(stored) or "0.5"
            raise MedvitError(f"There is no {asked} threshold: {reason} Take {others}, or a number from 0 to 1.")
        try:
            value = float(asked)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise MedvitError(f"threshold={asked!r}: expected 0 to 1, or one of {', '.join(stored) or 'none stored'}.")
        return value

    def _read(self, name: str, given: Given, allow_private: bool) -> Picture | str:
        try:
            return read(name, given, self.model.preprocessing, allow_private)
        except Unreadable as error:
            return str(error)

    @torch.inference_mode()
    def _answers(self, names: list[str], images: list[Picture | str]) -> Iterator[Prediction]:
        """One an image, in order; for a text in its place, that as the reason."""
        good = [image.pixels for image in images if not isinstance(image, str)]
        found = iter(self._outputs(good)) if good else iter(())
        for name, image in zip(names, images, strict=True):
            if isinstance(image, str):
                yield Prediction(name, {}, "", self.threshold, "", None, float("nan"), None, self.positive, image)
                continue
            p, distance = next(found)
            inside = None if self.sets is None else self.sets.sets(p)
            chosen = None if inside is None else tuple(c for c, yes in zip(self.classes, inside, strict=True) if yes)
            unlike = None if self.familiar is None else distance > self.familiar.limit
            by_name = dict(zip(self.classes, p.tolist(), strict=True))
            decided = self._decide(p), self.threshold, self.rule
            note = f"the first of {image.pages} pages" if image.pages > 1 else ""
            yield Prediction(name, by_name, *decided, chosen, distance, unlike, self.positive, "", image.pixels, note)

    def _outputs(self, images: list[np.ndarray]) -> Iterator[tuple[np.ndarray, float]]:
        """Probabilities (K,) and distance of each image, from one pass: grey and coloured ones apart."""
        rows: dict[int, tuple[np.ndarray, float]] = {}
        for channels in (1, 3):
            chosen = [i for i, image in enumerate(images) if image.shape[2] == channels]
            if not chosen:
                continue
            logits, features = self._run(np.stack([np.moveaxis(images[i], -1, 0) for i in chosen]))
            p = apply_temperature(logits, self.temperature)
            distances = np.full(len(chosen), np.nan) if self.familiar is None else self.familiar.distance(features)
            rows |= {i: (p[k], float(distances[k])) for k, i in enumerate(chosen)}
        return iter(rows[i] for i in range(len(images)))

    def _run(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (B, K) and features (B, D) of uint8 (B, C, H, W)."""
        if isinstance(self.model, OnnxModel):
            answer = self.model(batch)
            return answer.logits, answer.features
        x = normalise(torch.from_numpy(batch).to(self.device), self.model.preprocessing)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.model(x)
        features = self._seen.pop(get_ident())
        return logits.double().cpu().numpy(), features.float().cpu().numpy().reshape(len(batch), -1)

    def _decide(self, p: np.ndarray) -> str:
        if self.positive is None:
            return self.classes[int(p.argmax())]
        index = self.classes.index(self.positive)
        return self.classes[index if p[index] >= self.threshold else 1 - index]


def model_folder(name: str | Path) -> Path:
    """Where a model's two files are: a folder, a run's name, or "teaching".

    Raises:
        MedvitError: there is none; those that there are, are named.
    """
    try:
        return run_folder(name)
    except MedvitError as error:
        if str(name) == "teaching":
            return TEACHING
        raise MedvitError(f"{error} `teaching`, the small model of this library, is always here.") from None


def written(
    answers: Iterable[Prediction],
    predictor: Predictor,
    table: str | Path | None = None,
    maps: str | Path | None = None,
    show: Callable[[str], None] | None = None,
) -> Counter:
    """Write answers as they come: a row an image into a CSV, a picture an image into a folder, else a line each.

    Args:
        table: the CSV; an interruption leaves the rows so far.
        maps: a folder for pictures of each image beside its Grad-CAM of the class that was decided for.
        show: what prints a line, where there is no table.

    Returns:
        counts of "images", "errors", "unlike", "unclear" (not one class in the set) and ("decision", class).

    Raises:
        DataError: the table or folder cannot be written.
    """
    counts = Counter(images=0, errors=0, unlike=0, unclear=0)
    try:
        with open(table, "w", newline="", encoding="utf-8") if table else nullcontext() as file:
            probabilities = (f"p_{name}" for name in predictor.classes)
            columns = ["image", "decision", *probabilities, "threshold", "rule", "set", "distance", "unlike", "error"]
            if file:
                file.write(csv_line(columns))
            if maps:
                from medvitlib.answers import draw_answer  # matplotlib takes its time

                Path(maps).mkdir(parents=True, exist_ok=True)
            for answer in answers:
                counts["images"] += 1
                counts["errors"] += bool(answer.error)
                counts["unlike"] += bool(answer.unlike)
                counts["unclear"] += answer.classes is not None and len(answer.classes) != 1
                counts["decision", answer.label] += not answer.error
                if file:
                    row = answer.row()
                    file.write(csv_line(row.get(column, "") for column in columns))
                elif show:
                    show(printable(f"{answer.name}: {answer.sentence()}"))
                if maps and not answer.error:
                    name = f"{counts['images']:06d}_{Path(answer.name).stem or 'image'}.png"
                    draw_answer(predictor, answer).savefig(Path(maps) / name)
    except OSError as error:
        raise DataError(f"{error.filename or maps or table} cannot be written ({error.strerror or error}).") from error
    return counts


def summary(counts: Counter, predictor: Predictor) -> list[str]:
    """Say in a few lines what `written` counted, by which threshold it was decided, and what was not checked."""
    each = "; ".join(f"{name}: {counts['decision', name]}" for name in predictor.classes)
    if predictor.positive is None:
        rule = "the largest probability decides"
    else:
        rule = f"{predictor.positive} from p({predictor.positive}) = {predictor.threshold:.3f} on, {predictor.rule}"
    unclear = "not calibrated" if predictor.sets is None else counts["unclear"]
    unlike = "not checked" if predictor.familiar is None else counts["unlike"]
    return [
        f"Images: {counts['images']}; without an answer: {counts['errors']}.",
        f"{each} ({rule}).",
        f"Not one class in the set: {unclear}; unlike the training images: {unlike}.",
        *predictor.missing,
    ]
