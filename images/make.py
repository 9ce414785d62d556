"""Draws what the README shows, from rendered images and from the figures of a run.

python images/make.py            # audit.png: the audit of a rendered set whose leaks are switched on
python images/make.py RUN        # front_page.png too; RUN: a name under runs/, or a run folder
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from medvitlib import pictures, plots
from medvitlib.audit import audit, sheets
from medvitlib.data import open_dataset
from medvitlib.evaluation import Report
from medvitlib.evaluation.inputs import percent
from medvitlib.training.run import load_run


def front_page(report: Report) -> Figure:
    """Samples with their evidence; ROC curve and thresholds of `report` (two classes)."""
    figure = Figure(figsize=(13, 9), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.4))
    pictures.show_samples(open_dataset("phantom/cxr"), per_class=7, masks=True, on=above)
    given = {"classes": report.classes, "positive": report.positive, "groups": report.groups}
    names = {"0.5": "default", "recall": f"{percent(report.settings['target_recall'])} recall"}
    marks = {"thresholds": {names.get(name, name): value for name, value in report.thresholds.items()}}
    arrays = (report.y_true, report.probabilities)
    left, right = below.subfigures(1, 2)
    plots.plot_roc(*arrays, **given, **marks, on=left)
    plots.plot_threshold(*arrays, **given, **marks, on=right)
    return figure


def audit_page() -> Figure:
    """Pairs that an audit found, and what can be told without the disease."""
    found = audit(open_dataset("phantom/cxr", leaky=True, difficulty=0.7))
    figure = Figure(figsize=(13, 5.4), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    sheets.show_pairs(found, most=6, columns=2, on=left)
    sheets.plot_shortcuts(found, on=right)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    run = parser.parse_args().run
    audit_page().savefig(Path(__file__).with_name("audit.png"))
    if run:
        front_page(Report.load(load_run(run).folder)).savefig(Path(__file__).with_name("front_page.png"))
