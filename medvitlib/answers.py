"""Answers as a reader sees them: one with its heat map, many beside the threshold, and a bench to try images on."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from medvitlib.data import Dataset, normalise
from medvitlib.errors import MedvitError
from medvitlib.evaluation.intervals import Estimate, proportion
from medvitlib.explain import gradcam
from medvitlib.explain.pictures import HEAT
from medvitlib.models.onnx_model import OnnxModel
from medvitlib.pictures import INK, bare, draw_image
from medvitlib.plotstyle import BLUE, BROKEN, GREEN, PALE, VERMILION, canvas, clean, headline
from medvitlib.predict import NOTICE, Prediction, Predictor

if TYPE_CHECKING:
    from ipywidgets import Widget

SHOWN = 8  # classes beside an image


def draw_answer(predictor: Predictor, answer: Prediction) -> Figure:
    """The image, what speaks for the decision in it (Grad-CAM), and the probabilities; classes in the set are dark.

    Raises:
        MedvitError: there is no answer, so nothing to draw.
    """
    if answer.image is None:
        raise MedvitError(f"{answer.name} has no answer to draw: {answer.error}.")
    if isinstance(predictor.model, OnnxModel):
        raise MedvitError("A heat map takes gradients, which an .onnx file does not have: give the run's folder.")
    figure = Figure(figsize=(9.0, 3.0), dpi=100, layout="constrained")
    plain, over, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    for axis in (plain, over):
        bare(axis)
        draw_image(axis, answer.image)
    over.imshow(_heat(predictor, answer), cmap=HEAT, vmin=0, vmax=1)
    over.set_title(f"what speaks for {answer.label}", fontsize=9, color=INK, parse_math=False)
    names = sorted(answer.probabilities, key=answer.probabilities.get, reverse=True)[:SHOWN]
    inside = answer.classes if answer.classes is not None else (answer.label,)
    colours = [BLUE if name in inside else PALE for name in names]
    bars.barh(names, [answer.probabilities[name] for name in names], color=colours)
    if predictor.positive is not None:
        row = names.index(predictor.positive)
        bars.vlines(answer.threshold, row - 0.45, row + 0.45, color=VERMILION, lw=2)
    clean(bars)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    cut = f"; {predictor.positive} from {answer.threshold:.2f} on" if predictor.positive else ""
    bars.set_xlabel(f"probability{cut}", fontsize=9)
    figure.suptitle(answer.sentence(), fontsize=11, color=VERMILION if answer.unlike else INK, parse_math=False)
    return figure


def plot_answers(predictor: Predictor, answers: Sequence[Prediction], threshold: float | None = None) -> Figure:
    """Every image at its probability and its distance from the training images, with both limits.

    Args:
        threshold: instead of the predictor's, to see what it would decide; two classes only.

    Raises:
        MedvitError: no image has an answer.
    """
    known = [answer for answer in answers if not answer.error]
    if not known:
        raise MedvitError(f"None of the {len(answers)} images has an answer: there is nothing to plot.")
    figure = canvas(None, (7.0, 3.6))
    axis = figure.subplots()
    what = predictor.positive or "the decided class"
    x = np.array([answer.probabilities[predictor.positive or answer.label] for answer in known])
    y = np.array([answer.distance for answer in known])
    y = np.where(np.isfinite(y), y, 0)
    unlike = np.array([bool(answer.unlike) for answer in known])
    cut = predictor.threshold if threshold is None else threshold
    above = x >= cut if predictor.positive else np.ones(len(x), bool)
    for chosen, colour, name in ((above & ~unlike, VERMILION, f"called {what}"), (~above & ~unlike, BLUE, "not")):
        axis.scatter(x[chosen], y[chosen], s=18, color=colour, alpha=0.75, label=f"{name}: {chosen.sum()}")
    count = "not checked" if predictor.familiar is None else unlike.sum()
    axis.scatter(x[unlike], y[unlike], s=40, marker="x", color="black", label=f"unlike: {count}")
    if predictor.positive:
        axis.axvline(cut, color=VERMILION, ls=BROKEN, lw=1.2)
    if predictor.familiar is not None:
        axis.axhline(predictor.familiar.limit, color=GREEN, ls=BROKEN, lw=1.2)
    clean(axis)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(f"probability of {what}", fontsize=9)
    axis.set_ylabel("distance from the training images", fontsize=9)
    axis.legend(fontsize=8.5, frameon=False)
    failed = len(answers) - len(known)
    headline(axis, "What the model says", f"{len(known)} images" + (f", {failed} without an answer" if failed else ""))
    return figure


def promises_kept(answers: Sequence[Prediction], dataset: Dataset) -> dict[str, Estimate]:
    """How often the sets held the true class, and how often a usual image was called unlike, where it is known.

    Args:
        answers: for every image of `dataset`, in its order.

    Returns:
        "held": patients all of whose images had their class in the set (the promise is about these); "unlike": images.

    Raises:
        MedvitError: another number of answers than of images, one without an answer, or a model that has no sets or
            does not check for unlike images.
    """
    if len(answers) != len(dataset) or any(answer.error for answer in answers):
        raise MedvitError(f"{len(answers)} answers for {len(dataset)} images: each image needs one.")
    if any(answer.classes is None or answer.unlike is None for answer in answers):
        raise MedvitError("These answers have no sets of classes, or were not checked: see Predictor.missing.")
    names = [dataset.classes[label] for label in dataset.labels]
    inside = np.array([name in answer.classes for name, answer in zip(names, answers, strict=True)])
    units, member = np.unique(dataset.groups, return_inverse=True)
    missed = np.zeros(len(units), bool)
    np.logical_or.at(missed, member, ~inside)
    unlike = np.array([answer.unlike for answer in answers])
    return {
        "held": proportion(~missed, np.arange(len(units)), dataset.groups_known),
        "unlike": proportion(unlike, member, dataset.groups_known),
    }


def try_it(predictor: Predictor, answers: Sequence[Prediction], *, interactive: bool = True) -> "Widget | Figure":
    """Drop in an image, move the threshold, and see; without ipywidgets, the same as a figure that stands still.

    What is dropped in stays in the kernel's memory: nothing is written or sent.

    Args:
        answers: of images to begin with, for the threshold to move over.
    """
    try:
        if not interactive:
            raise ImportError
        import ipywidgets
    except ImportError:
        return plot_answers(predictor, answers)

    upload = ipywidgets.FileUpload(accept="image/*,.dcm", multiple=False, description="An image")
    start = predictor.threshold if predictor.positive else 0.5
    slider = ipywidgets.FloatSlider(start, min=0, max=1, step=0.01, description="Threshold", continuous_update=False)
    slider.disabled = predictor.positive is None
    said, shown = ipywidgets.HTML(), ipywidgets.HTML()
    dropped: list[Prediction] = []

    def refresh(_=None) -> None:
        if predictor.positive and slider.value != predictor.threshold:
            predictor.threshold, predictor.rule = slider.value, "as given"
        if upload.value and (not dropped or dropped[0].name != upload.value[0]["name"]):
            file = upload.value[0]
            (answer,) = predictor.predict(bytes(file["content"]), quiet=True)
            dropped[:] = [replace(answer, name=file["name"])]
        again = [predictor.decide_again(answer) for answer in (*answers, *dropped)]
        new = again[len(answers) :]
        figures = [
            plot_answers(predictor, again),
            *(draw_answer(predictor, answer) for answer in new if not answer.error),
        ]
        shown.value = "<br>".join(_svg(figure) for figure in figures)
        said.value = _escaped(f"{new[0].name}: {new[0].sentence()}" if new else "Drop in an image. " + NOTICE)

    upload.observe(refresh, "value")
    slider.observe(refresh, "value")
    refresh()
    return ipywidgets.VBox([upload, slider, said, shown])


def _heat(predictor: Predictor, answer: Prediction) -> np.ndarray:
    planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(answer.image, -1, 0)))[None]
    x = normalise(planes.to(predictor.device), predictor.model.preprocessing)
    return gradcam(predictor.model, x, predictor.classes.index(answer.label))[0].cpu().numpy()


def _svg(figure: Figure) -> str:
    page = io.StringIO()
    figure.savefig(page, format="svg")
    text = page.getvalue()
    return text[text.index("<svg") :]


def _escaped(text: str) -> str:
    import html

    return f"<b>{html.escape(text)}</b>"
