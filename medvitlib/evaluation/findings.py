"""A report in plain sentences, doubts first among equals."""

from typing import TYPE_CHECKING

import numpy as np

from medvitlib.errors import printable
from medvitlib.evaluation.inputs import percent
from medvitlib.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from medvitlib.evaluation.result import Report

FLOOR = 30  # patients of a class below which its figures are called rough


def findings(report: "Report") -> list[str]:
    """Alerts, what was tested, what was found at each operating point, what is doubtful, in this order."""
    sentences = [*report.alerts, what_was_tested(report), _ranking(report)]
    sentences += _operating_points(report) if report.positive is not None else _classes(report)
    return [printable(sentence) for sentence in sentences + caveats(report)]


def headline(report: "Report") -> str:
    """The result in one sentence, with its interval and what it rests on."""
    name, words = ("auroc", "AUROC") if report.positive is not None else ("accuracy", "Accuracy")
    found = report.metrics[name]
    who = "patients unknown" if found.n_groups is None else f"{found.n_groups} patients"
    return f"{words} {found} on {found.n_images} images ({who})."


def caveats(report: "Report") -> list[str]:
    """How the probabilities were calibrated, what could not be done, what is doubtful: what no table shows."""
    return [*_calibration(report), *report.notes, *_doubts(report)]


def what_was_tested(report: "Report") -> str:
    """The number of images, of each class and together, and of patients."""
    parts = [f"{int((report.y_true == k).sum())} {name}" for k, name in enumerate(report.classes)]
    n = len(report.y_true)
    if report.groups is None:
        return f"{n} test images ({', '.join(parts)}); patients unknown."
    return f"{n} test images ({', '.join(parts)}) of {len(np.unique(report.groups))} patients."


def _ranking(report: "Report") -> str:
    if report.positive is None:
        kappa = f", quadratic kappa {report.metrics['kappa']}" if "kappa" in report.metrics else ""
        return (
            f"Macro one-against-rest AUROC {report.metrics['auroc_macro']}, accuracy {report.metrics['accuracy']}, "
            f"balanced accuracy {report.metrics['balanced_accuracy']}{kappa}."
        )
    prevalence = (report.y_true == report.classes.index(report.positive)).mean()
    return (
        f"AUROC {report.metrics['auroc']}; AUPRC {report.metrics['auprc']}, where calling images {report.positive} "
        f"at random would give {prevalence:.3f}."
    )


def _operating_points(report: "Report") -> list[str]:
    target = report.settings["target_recall"]
    sentences = []
    for name, point in report.operating_points.items():
        threshold = point["threshold"]
        at = {
            "0.5": "At 0.5",
            "recall": f"At the threshold chosen on validation for {percent(target)} recall ({threshold:.3g})",
            "published": f"At the threshold of the published rule, highest precision at that recall ({threshold:.3g})",
            "certified": f"At the certified threshold ({threshold:.3g})",
        }[name]
        sentence = (
            f"{at}, test recall is {point['recall']}, precision {point['precision']}, specificity "
            f"{point['specificity']}; missed: {point['fn']} of {point['fn'] + point['tp']} {report.positive} images, "
            f"called so wrongly: {point['fp']} of {point['fp'] + point['tn']} others."
        )
        if name == "recall" and threshold == 0.5 and name in report.choices:
            sentence += f" {report.choices[name].sentence}"
        if name == "recall":
            sentence += f" The recall is {_against(point['recall'], target)}."
        if name == "certified":
            found = point.get("patient_recall", point["recall"])
            unit = "patients with every positive image found" if "patient_recall" in point else "images found"
            promise = f" {report.choices[name].sentence}" if name in report.choices else ""  # stored: only the number
            sentence += f"{promise} On test: {unit} {found}, {_against(found, target)}."
        sentences.append(sentence)
    return sentences


def _against(recall: Estimate, target: float) -> str:
    goal = f"the target of {percent(target)}"
    if np.isnan(recall.value):
        return "undefined"
    if recall.value >= target:
        return f"above {goal}" if recall.low >= target else f"at or above {goal}, though its interval reaches below"
    return f"below {goal}, by no more than chance allows" if recall.high >= target else f"below {goal}, beyond chance"


def _classes(report: "Report") -> list[str]:
    known = {name: recall for name, recall in report.per_class.items() if not np.isnan(recall.value)}
    if not known:
        return []
    worst = min(known, key=lambda name: known[name].value)
    return [f"The class found least often is {worst}: recall {known[worst]}."]


def _calibration(report: "Report") -> list[str]:
    images = report.settings["validation_images"]
    if not images and report.temperature == 1:
        return []
    chosen = f"chosen on {images} validation images" if images else "as stored"
    before, after = report.calibration["before"], report.calibration["after"]
    change = report.calibration["change"]["nll"]
    worse = f" Scaling made the test NLL worse, by {change}: the test images differ from the validation images in this."
    refers = " Thresholds refer to the calibrated probabilities." if report.positive is not None else ""
    return [
        f"Logits were divided by a temperature of {report.temperature:.3g}, {chosen}: the loss (NLL, mean negative "
        f"log probability of the true class) went from {before['nll'].value:.3f} to {after['nll']}, the gap between "
        f"probability and share right (ECE, 15 bins) from {before['ece'].value:.3f} to {after['ece']}."
        f"{worse if round(change.low, 3) > 0 else ''}{refers}"
    ]


def _doubts(report: "Report") -> list[str]:
    sentences = []
    if report.groups is None:
        sentences.append(
            "Patients are unknown, so each image was taken as its own: if patients have several images, every "
            "interval is too narrow, and nothing shows that training and test patients differ."
        )
    for k, name in enumerate(report.classes):
        own = report.y_true == k
        n = int(own.sum()) if report.groups is None else len(np.unique(report.groups[own]))
        if n < FLOOR:
            unit = "images" if report.groups is None else "patients"
            sentences.append(f"Only {n} {unit} of {name} (fewer than {FLOOR}): figures that rest on them are rough.")
    undefined = {e.reason: name for name, e in report.metrics.items() if np.isnan(e.value)}
    return sentences + [f"Undefined ({name} and the like): {reason}." for reason, name in undefined.items()]
