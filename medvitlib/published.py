"""Figures that others have reported, to stand beside ours. None came with an interval; n gives some of them one."""

from collections.abc import Mapping, Sequence

from medvitlib.evaluation import Report, wilson

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
    # MedMNIST's official test parts; "n" is their number of images
    "medmnist/bloodmnist": (
        {"model": "published: ViT-B, fine-tuned", "accuracy": 0.979, "n": 3421},
        {"model": "published: frozen DINO ViT-B, linear, 224 px", "accuracy": 0.987, "n": 3421},
        {"model": "published: best known", "accuracy": 0.990, "n": 3421},
    ),
    "medmnist/breastmnist": (
        {"model": "published: best at 28 px", "accuracy": 0.863, "auroc": 0.919, "n": 156},
        {"model": "published: ViT-B, fine-tuned", "accuracy": 0.904, "n": 156},
        {"model": "published: frozen DINO ViT-B, linear, 224 px", "accuracy": 0.887, "n": 156},
        {"model": "published: best known", "accuracy": 0.906, "n": 156},
    ),
    "medmnist/pathmnist": (
        {"model": "published: ViT-B, fine-tuned", "accuracy": 0.946, "n": 7180},
        {"model": "published: frozen DINO ViT-B, linear, 224 px", "accuracy": 0.961, "n": 7180},
        {"model": "published: best known", "accuracy": 0.961, "n": 7180},
    ),
    "medmnist/retinamnist": (
        {"model": "published: ViT-B, fine-tuned", "accuracy": 0.570, "n": 400},
        {"model": "published: frozen DINO ViT-B, linear, 224 px", "accuracy": 0.626, "n": 400},
        {"model": "published: best known", "accuracy": 0.642, "n": 400},
    ),
}
"""Rows by data set. Where n, the images of the test part, is known, it gives the accuracy an interval (Wilson)."""


def published(data_name: str) -> tuple[dict, ...]:
    """What was reported for a set, whatever the size it was opened in (`medmnist/breastmnist@64`)."""
    return PUBLISHED.get(data_name.partition("@")[0], ())


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
    rows += [_as_text(row) for row in published(data_name)]
    return pd.DataFrame(rows, columns=["model", *columns]).set_index("model").fillna("")


def published_table(data_names: Sequence[str]):
    """What was reported for these sets, with n and, where it is known, the interval that it gives.

    Returns:
        a pandas DataFrame indexed by set and model, as text.
    """
    import pandas as pd

    rows = [
        {"set": name.partition("@")[0], **_as_text(row), "test images": f"{row['n']:,}" if "n" in row else ""}
        for name in data_names
        for row in published(name)
    ]
    return (
        pd.DataFrame(rows, columns=["set", "model", "test images", "accuracy", "auroc"])
        .fillna("")
        .set_index(["set", "model"])
    )


def differences_from_published(model: str, report: Report, data_name: str) -> list[str]:
    """A sentence for each published accuracy whose n is known: how far ours is from it, and whether that may be chance.

    The interval of the difference is Newcombe's (1998, method 10), of two independent samples. Both models saw the same
    images, which a paired comparison would use; without the others' predictions this one is on the safe side.
    """
    found, ours = [], report.metrics["accuracy"]
    for row in published(data_name):
        if "n" not in row:
            continue
        theirs, (low, high) = row["accuracy"], _interval(row)
        difference = ours.value - theirs
        below = difference - ((ours.value - ours.low) ** 2 + (high - theirs) ** 2) ** 0.5
        above = difference + ((ours.high - ours.value) ** 2 + (theirs - low) ** 2) ** 0.5
        verdict = "could be chance" if below <= 0 <= above else "is more than chance"
        found.append(
            f"{model} {ours.value:.3f}, {row['model']} {theirs:.3f}: a difference of {difference:+.3f} "
            f"[{below:+.3f}, {above:+.3f}] on {row['n']:,} images, which {verdict}."
        )
    return found


def _interval(row: dict) -> tuple[float, float]:
    """Wilson's, of the accuracy of so many images."""
    return wilson(row["accuracy"] * row["n"], row["n"])


def _as_text(row: dict) -> dict[str, str]:
    cells = {key: value if isinstance(value, str) else f"{value:.3f}" for key, value in row.items() if key != "n"}
    if "n" in row:
        cells["accuracy"] = "{:.3f} [{:.3f}, {:.3f}]".format(row["accuracy"], *_interval(row))
    return cells
