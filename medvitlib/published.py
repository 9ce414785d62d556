"""Figures that others have reported, to stand beside ours. None of them came with an interval."""

from collections.abc import Mapping, Sequence

from medvitlib.evaluation import Report

PUBLISHED = {
    "chest_xray": (  # the official test set, 624 images: notebooks on Kaggle and GitHub
        {"model": "published: ViT trained from scratch", "accuracy": 0.793, "auroc": 0.889},
        {"model": "published: ViT-B/16, fine-tuned", "accuracy": 0.870, "auroc": 0.901, "recall": 0.990},
    ),
    "sarscov2_ct": (  # best point of a grid, made deeper; precision and recall are means over both classes
        {
            "model": "published: teaching model, no test set of its own",
            "accuracy": 0.8169,
            "precision": 0.8267,
            "recall": 0.8169,
            "mcc": 0.6436,
        },
    ),
}


def beside_published(
    reports: Mapping[str, Report], data_name: str, columns: Sequence[str] = ("accuracy", "recall", "auroc")
):
    """One row a model and operating point (one a model for many classes), then those published for that data set.

    Args:
        reports: name of the model -> its report.
        columns: metrics to show, of those at an operating point, and auroc.

    Returns:
        a pandas DataFrame indexed by model, with these columns as text, ours with 95 % intervals.
    """
    import pandas as pd

    rows = []
    for model, report in reports.items():
        area = next(estimate for name, estimate in report.metrics.items() if name.startswith("auroc"))
        points = {f"@{name}": point for name, point in report.operating_points.items()}
        for name, point in (points or {"largest probability": report.metrics}).items():
            scores = {metric: str(point[metric]) for metric in columns if metric in point}
            rows.append({"model": f"{model}, {name}", **scores, "auroc": str(area)})
    rows += [
        {key: value if isinstance(value, str) else f"{value:.3f}" for key, value in row.items()}
        for row in PUBLISHED.get(data_name, ())
    ]
    return pd.DataFrame(rows, columns=["model", *columns]).set_index("model").fillna("")
