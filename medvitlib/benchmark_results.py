"""What a benchmark shows of each set, as tables and as figures by name, and everything it leaves on disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from medvitlib.audit import Audit, audit
from medvitlib.benchmark import MEAN, Result
from medvitlib.curves import plot_histories
from medvitlib.data import Dataset, Split, normalise
from medvitlib.evaluation.inputs import check
from medvitlib.evaluation.intervals import Estimate
from medvitlib.evaluation.report import Report
from medvitlib.evaluation.scoring import decide, estimates
from medvitlib.explain import gradcam
from medvitlib.explain.examples import right_and_wrong
from medvitlib.explain.pictures import show_maps
from medvitlib.jsonfile import csv_text, write_text
from medvitlib.pictures import show_mistakes
from medvitlib.plots import plot_confusion, plot_roc

if TYPE_CHECKING:
    import pandas as pd


def macro_f1(report: Report) -> Estimate:
    """Mean F1 of all classes, of two as well, with its interval."""
    data = check(report.y_true, report.probabilities, report.classes, report.positive, report.groups)
    settings = {key: report.settings[key] for key in ("n_boot", "seed", "confidence")}
    return estimates(replace(data, positive=None), decide(data), **settings, with_scores=False)["f1_macro"]


def figures_of(report: Report) -> dict[str, Estimate]:
    """What a benchmark reports: accuracy, macro F1, AUROC, and kappa for grades."""
    area = report.metrics["auroc_macro" if report.positive is None else "auroc"]
    found = {"accuracy": report.metrics["accuracy"], "macro F1": macro_f1(report), "AUROC": area}
    return found | ({"kappa": report.metrics["kappa"]} if "kappa" in report.metrics else {})


def benchmark_table(results: Mapping[str, Result], *, text: bool = True) -> "pd.DataFrame":
    """A row a set and method, the chosen one marked: with `text`, each figure as "value [low, high]", else as numbers.

    Args:
        results: name of the set -> what came of it.
    """
    import pandas as pd

    rows = []
    for name, result in results.items():
        for method, report in result.reports.items():
            row = {"set": name, "method": method, "chosen": "yes" if method == result.chosen else ""}
            row |= {"validation NLL": result.validation[method], "test images": len(report.y_true)}
            for figure, found in figures_of(report).items():
                ends = {figure: found.value, f"{figure} low": found.low, f"{figure} high": found.high}
                row |= {figure: str(found)} if text else ends
            rows.append(row)
    table = pd.DataFrame(rows).set_index(["set", "method"])
    return table.fillna("").round({"validation NLL": 3}) if text else table


def audited(ds: Dataset, *, most: int = 2000, weights: str | None = None, seed: int = 0) -> Audit:
    """The audit of a set, of a larger one of so many images, drawn at random: pairs grow with the square of them."""
    if len(ds) > most:
        ds = ds.subset(np.sort(np.random.default_rng(seed).choice(len(ds), most, replace=False)))
    return audit(ds, weights=weights, n_boot=100)


def pictures_of(result: Result, parts: Split) -> dict[str, Figure]:
    """Figures of the method that was chosen: "curves" (of all that trained), "confusion", "roc", "mistakes", "gradcam".

    Where several models answered together, Grad-CAM is of the first of them that was trained.
    """
    report, test = result.reports[result.chosen], parts.test
    p = report.probabilities
    called = p.argmax(1)
    given = {"classes": report.classes, "positive": report.positive, "groups": report.groups}
    found = {}
    trained = {method: runs[0].metrics for method, runs in result.runs.items() if "epoch" in runs[0].metrics}
    if trained:
        found["curves"] = plot_histories(trained, ("train_loss", "val_nll", "val_accuracy"))
    title = f"Confusion, {result.chosen}"
    found["confusion"] = plot_confusion(report.y_true, called, classes=report.classes, title=title)
    found["roc"] = plot_roc(report.y_true, p, **given, seed=report.settings["seed"])
    found["mistakes"] = show_mistakes(test, called, p.max(1))
    found["gradcam"] = _maps(result, test, p)
    return found


def write_results(
    results: Mapping[str, Result], figures: Mapping[str, Mapping[str, Figure]], folder: str | Path
) -> Path:
    """Write metrics.csv (a row a set and method, numbers) and plots/SET-FIGURE.png (of a space or slash: a dash).

    Args:
        figures: name of the set -> its figures by name.

    Returns:
        the folder.
    """
    folder = Path(folder)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    write_text(folder / "metrics.csv", csv_text(benchmark_table(results, text=False), index=True))
    for name, drawn in figures.items():
        for what, figure in drawn.items():
            figure.savefig(folder / "plots" / f"{name.replace('/', '-').replace(' ', '-')}-{what}.png")
    return folder


def _maps(result: Result, test: Dataset, p: np.ndarray) -> Figure:
    """Grad-CAM of the predicted class, on the surest right and wrong predictions of each class."""
    method = next(iter(reversed(result.runs))) if result.chosen == MEAN else result.chosen
    model = result.runs[method][0].model
    shown = right_and_wrong(test.labels, p, test.classes)
    positions, titles = [i for i, _ in shown], [title for _, title in shown]
    device = next(model.parameters()).device
    x = normalise(torch.from_numpy(test.images.planes(np.array(positions))).to(device), model.preprocessing)
    heat = gradcam(model, x, target=p[positions].argmax(1)).cpu()
    return show_maps([test.images[i] for i in positions], {f"Grad-CAM, {method}": heat}, titles)
