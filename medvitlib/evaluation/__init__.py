"""From labels and probabilities to figures with intervals; nothing in here needs a model or this library's data."""

from medvitlib.evaluation.areas import DeLong, delong
from medvitlib.evaluation.calibration import apply_temperature, fit_temperature, log_probabilities
from medvitlib.evaluation.inputs import Predictions
from medvitlib.evaluation.intervals import Estimate, clopper_pearson, wilson
from medvitlib.evaluation.paired import Comparison, compare_with_best
from medvitlib.evaluation.pairs import Pair, compare_pair, mcnemar
from medvitlib.evaluation.report import Stored, build_report
from medvitlib.evaluation.result import Report
from medvitlib.evaluation.scoring import score
from medvitlib.evaluation.thresholds import (
    NotCertifiable,
    ThresholdChoice,
    choose_certified_threshold,
    choose_recall_threshold,
    choose_threshold_by_min_recall,
    patients_needed,
    summarize_at_threshold,
)

__all__ = [
    "Comparison",
    "DeLong",
    "Estimate",
    "NotCertifiable",
    "Pair",
    "Predictions",
    "Report",
    "Stored",
    "ThresholdChoice",
    "apply_temperature",
    "build_report",
    "choose_certified_threshold",
    "choose_recall_threshold",
    "choose_threshold_by_min_recall",
    "clopper_pearson",
    "compare_pair",
    "compare_with_best",
    "delong",
    "fit_temperature",
    "log_probabilities",
    "mcnemar",
    "patients_needed",
    "score",
    "summarize_at_threshold",
    "wilson",
]
