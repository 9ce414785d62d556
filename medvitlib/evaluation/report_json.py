"""The fields of report.json, and the rules that they are checked by when it is read (see `medvitlib.jsonfile`)."""

from medvitlib.evaluation.calibration import BOUNDS
from medvitlib.jsonfile import flag, listing, mapping, maybe, number, record, text

FORMAT = 1  # of report.json
ENDS = ("value", "low", "high")  # of an estimate: what may be nan
SHARE = number(0, 1)
COUNT = number(0, 1e12, whole=True)
ESTIMATE = record(
    dict.fromkeys(ENDS, maybe(number()))
    | {"method": text(), "n_images": COUNT, "n_groups": maybe(COUNT), "reason": text(least=0)}
)
CHOICE = record(
    {"threshold": SHARE, "recall": SHARE, "precision": SHARE, "n_positive": COUNT, "n_patients": maybe(COUNT)}
    | {"certified": flag, "confidence": maybe(SHARE), "sentence": text()}
)
POINT = record(
    {"threshold": SHARE, **dict.fromkeys(("tp", "fp", "fn", "tn"), COUNT)}
    | dict.fromkeys(("recall", "precision", "specificity"), ESTIMATE),
    others=ESTIMATE,
)
CHOSEN = ("recall", "published", "certified")
CALIBRATION = record(dict.fromkeys(("brier", "nll", "ece"), ESTIMATE))
METRICS = {2: ("auroc", "auprc", "accuracy"), 3: ("auroc_macro", "accuracy", "balanced_accuracy")}  # of 2 classes, more
FIELDS = {
    "format": number(FORMAT, FORMAT, whole=True),
    "classes": listing(text(), 2),
    "positive": maybe(text()),
    "images": COUNT,
    "patients": maybe(COUNT),
    "settings": record(
        {"target_recall": SHARE, "confidence": SHARE, "candidates": COUNT, "n_boot": COUNT, "seed": COUNT}
        | {"validation_images": COUNT}
    ),
    "temperature": number(*BOUNDS),
    "metrics": mapping(ESTIMATE),
    "per_class_recall": mapping(ESTIMATE),
    "calibration": record({"before": CALIBRATION, "after": CALIBRATION, "change": record({"nll": ESTIMATE})}),
    "choices": record({f"{name}?": CHOICE for name in CHOSEN}),
    "operating_points": record({f"{name}?": POINT for name in ("0.5", *CHOSEN)}),
    "refused": record({f"{name}?": text() for name in CHOSEN}),
    "notes": listing(text()),
    "alerts": listing(text()),
}
"""Of report.json, see `medvitlib.jsonfile`; what can be computed from these and predictions.csv is not read."""
