"""Figures that others have reported, to stand beside ours. None of them came with an interval."""

from medvitlib.evaluation import Report

PUBLISHED = {
    "chest_xray": (  # the official test set, 624 images: notebooks on Kaggle and GitHub
        {"model": "published: ViT trained from scratch", "accuracy": 0.793, "auroc": 0.889},
        {"model": "published: ViT-B/16, fine-tuned", "accuracy": 0.870, "auroc": 0.901, "recall": 0.990},
    )
}


def beside_published(report: Report, data_name: str):
    """One row an operating point of `report` (one row for many classes), then the published ones for that data set.

    Returns:
        a pandas DataFrame indexed by model, columns accuracy, recall and auroc as text, ours with 95 % intervals.
    """
    import pandas as pd

    area = next(estimate for name, estimate in report.metrics.items() if name.startswith("auroc"))
    points = report.operating_points or {"largest probability": report.metrics}
    rows = [
        {"model": f"this run, {name if name != '0.5' else '@0.5'}", "auroc": str(area)}
        | {metric: str(point[metric]) for metric in ("accuracy", "recall") if metric in point}
        for name, point in points.items()
    ]
    rows += [
        {key: value if isinstance(value, str) else f"{value:.3f}" for key, value in row.items()}
        for row in PUBLISHED.get(data_name, ())
    ]
    return pd.DataFrame(rows, columns=["model", "accuracy", "recall", "auroc"]).set_index("model").fillna("")
