"""Several explanations of one model on the same images, scored beside maps that know nothing: a table, and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from medvitlib.errors import ExplanationError, one_of
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

        Raises:
            ExplanationError: a method, control or score that is not there.
        """
        for name in (method, *([] if against is None else [against])):
            one_of("method", name, self.scores, ExplanationError)
            one_of("score", score, self.scores[name], ExplanationError)
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
    batch_size: int = 32,
) -> ExplanationScores:
    """Score explanations beside a random map and a centred Gaussian, all on the same images.

    Args:
        images: floating (N, C, H, W), normalised.
        methods: name -> function as `gradcam`; None for all of `CAMS`.
        target: class to explain; None for the predicted one of each image.
        masks: bool (N, H, W), where the evidence is known to lie, for the pointing game and the overlap.
        groups: (N,) patient of each image, drawn together for intervals.
        batch_size: images at a time.

    Raises:
        DataError: images that are no normalised batch.
        ExplanationError: a method called as a control is, maps, masks or groups that do not fit.
    """
    methods = CAMS if methods is None else methods
    if not isinstance(methods, Mapping) or not all(map(callable, methods.values())):
        raise ExplanationError('methods: expected names and functions, such as {"Grad-CAM": gradcam}.')
    if batch_size < 1:
        raise ExplanationError(f"batch_size={batch_size}: expected 1 or more.")
    if taken := set(methods) & set(CONTROLS):
        raise ExplanationError(f"{sorted(taken)} are the controls' names: call the method otherwise.")
    images = checked(model, images)
    if groups is not None and len(groups) != len(images):
        raise ExplanationError(f"groups has {len(groups)}, there are {len(images)} images: expected one for each.")
    if masks is not None and len(masks) != len(images):
        raise ExplanationError(f"masks has {len(masks)}, there are {len(images)} images: expected one for each.")
    target = targets(model, images, target)  # of the images as they are, whatever is done to them
    controls = {"random": faithfulness.random_maps(images, seed), "centred": faithfulness.centred_maps(images)}
    some = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    blurrings = [faithfulness.Blurring(model, images[rows], target[rows]) for rows in some]
    scores = {}
    for name in track([*methods, *controls], "Scoring maps", unit="method"):
        parts = []
        for rows, blurring in zip(some, blurrings, strict=True):
            method = methods.get(name)
            maps = controls[name][rows] if method is None else method(model, images[rows], target[rows])
            inside = None if masks is None else masks[rows]
            parts.append(_scores(model, images[rows], target[rows], maps, method, inside, blurring, seed))
        scores[name] = {score: np.concatenate([part[score] for part in parts]) for score in parts[0]}
    return ExplanationScores(scores, None if groups is None else np.asarray(groups))


def _scores(
    model: nn.Module,
    images: torch.Tensor,
    target: torch.Tensor,
    maps: torch.Tensor,
    method: Method | None,
    masks: torch.Tensor | None,
    blurring: faithfulness.Blurring,
    seed: int,
) -> dict[str, np.ndarray]:
    """Every score of some maps, (N,) each; those that need a method only where there is one."""
    found = {
        "deletion": blurring.deletion(maps),
        "insertion": blurring.insertion(maps),
        "road": faithfulness.road(model, images, maps, target, seed=seed),
    }
    if masks is not None:
        found |= {"pointing": faithfulness.pointing(maps, masks), "overlap": faithfulness.overlap(maps, masks)}
    if method is not None:
        for score in ("stability", "randomisation"):
            measure = getattr(faithfulness, score)
            found[score] = measure(method, model, images, target, seed=seed, maps=maps)
    return {score: values.double().cpu().numpy() for score, values in found.items()}


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
