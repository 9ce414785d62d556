"""Several explanations of one model on the same images, scored beside maps that know nothing: a table, and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.evaluation.intervals import Estimate, bootstrap, percentiles
from medvitlib.explain import faithfulness
from medvitlib.explain.faithfulness import Method
from medvitlib.explain.gradcam import CAMS
from medvitlib.explain.inputs import checked, targets
from medvitlib.progress import track

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("random", "centred")
SMALLER = ("deletion", "randomisation")  # is better
AGAINST = ("deletion", "insertion", "road", "pointing", "overlap")
"""What a control has, too: the others need a method, not a map."""


@dataclass(frozen=True, eq=False)
class ExplanationScores:
    """Scores of each method and control, an image each.

    Attributes:
        scores: method -> score -> (N,) float.
        groups: (N,) patient of each image; None where unknown.
        confidence: of the intervals.
    """

    scores: Mapping[str, Mapping[str, np.ndarray]]
    groups: np.ndarray | None
    confidence: float = 0.95

    def estimate(self, method: str, score: str, against: str | None = None) -> Estimate:
        """The mean of a score over images, or of its difference to a control's, patients drawn with replacement.

        Images of which a score says nothing (no evidence to point at) are left out.
        """
        values = self.scores[method][score]
        if against is not None:
            values = values - self.scores[against][score]
        told = ~np.isnan(values)
        values, n = values[told], int(told.sum())
        if not n:
            return Estimate(np.nan, np.nan, np.nan, "bootstrap", 0, None, "no image has evidence to point at")
        codes = np.arange(n) if self.groups is None else np.unique(self.groups[told], return_inverse=True)[1]
        drawn = bootstrap(lambda weights: {"mean": weights @ values / weights.sum(1)}, codes, 2000, 0)["mean"]
        low, high, _ = percentiles(drawn, self.confidence)
        patients = None if self.groups is None else int(codes.max()) + 1
        return Estimate(float(values.mean()), low, high, "bootstrap", n, patients)

    def table(self) -> "pd.DataFrame":
        """A row a method and control, as text: each score's mean with its interval; lower is better for deletion and
        randomisation."""
        import pandas as pd

        rows = {m: {score: str(self.estimate(m, score)) for score in found} for m, found in self.scores.items()}
        return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("method")

    def beats(self, method: str, score: str) -> bool:
        """Whether a method is better than both controls by an interval that excludes zero."""
        sign = -1 if score in SMALLER else 1
        ends = [self.estimate(method, score, control) for control in CONTROLS]
        return all((e.low if sign > 0 else -e.high) > 0 for e in ends)

    def sentences(self) -> list[str]:
        """Which methods beat the controls at what, on this model and these images, and which do not."""
        said = []
        for method, found in self.scores.items():
            if method in CONTROLS:
                continue
            scores = [score for score in AGAINST if score in found]
            won = [score for score in scores if self.beats(method, score)]
            lost = [score for score in scores if score not in won]
            if not won:
                n = len(found["deletion"])
                said.append(
                    f"{method} beats a random and a centred map at nothing: {n} images do not show that it knows more "
                    "than they do."
                )
            elif lost:
                said.append(f"{method} beats a random and a centred map at {_and(won)}, and not at {_and(lost)}.")
            else:
                said.append(f"{method} beats a random and a centred map at everything: {_and(won)}.")
            if (same := found.get("randomisation")) is not None and same.mean() > 0.5:
                said.append(
                    f"{method} hardly changes when the model's weights are shuffled (rank correlation "
                    f"{same.mean():.2f}): it shows the image more than the model."
                )
        return said


def compare_explanations(
    model: nn.Module,
    images: torch.Tensor,
    methods: Mapping[str, Method] | None = None,
    *,
    target: int | Sequence[int] | None = None,
    masks: torch.Tensor | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> ExplanationScores:
    """Score explanations beside a random map and a centred Gaussian, all on the same images.

    Args:
        images: floating (N, C, H, W), normalised.
        methods: name -> function as `gradcam`; None for all of `CAMS`.
        target: class to explain; None for the predicted one of each image.
        masks: bool (N, H, W), where the evidence is known to lie, for the pointing game and the overlap.
        groups: (N,) patient of each image, drawn together for intervals.

    Raises:
        ExplanationError: a method called as a control is, or masks that do not fit.
    """
    methods = dict(CAMS if methods is None else methods)
    if taken := set(methods) & set(CONTROLS):
        raise ExplanationError(f"{sorted(taken)} are the controls' names: call the method otherwise.")
    images = checked(model, images)
    maps = {
        "random": faithfulness.random_maps(images, seed),
        "centred": faithfulness.centred_maps(images),
    }
    target = targets(model, images, target)  # of the images as they are, whatever is done to them
    blurring = faithfulness.Blurring(model, images, target)
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name in track([*methods, *CONTROLS], "Scoring maps", unit="method"):
        method = methods.get(name)
        shown = maps[name] if method is None else method(model, images, target)
        shown = shown.to(images.device)
        found = {
            "deletion": blurring.deletion(shown),
            "insertion": blurring.insertion(shown),
            "road": faithfulness.road(model, images, shown, target, seed=seed),
        }
        if masks is not None:
            found |= {"pointing": faithfulness.pointing(shown, masks), "overlap": faithfulness.overlap(shown, masks)}
        if method is not None:
            found["stability"] = faithfulness.stability(method, model, images, target, seed=seed, maps=shown)
            found["randomisation"] = faithfulness.randomisation(method, model, images, target, seed=seed, maps=shown)
        scores[name] = {score: values.double().cpu().numpy() for score, values in found.items()}
    return ExplanationScores(scores, groups)


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
