"""Which images to look at: for each class what the model was surest of, rightly and wrongly."""

from collections.abc import Sequence

import numpy as np

from medvitlib.errors import ExplanationError


def right_and_wrong(
    y_true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], each: int = 1
) -> list[tuple[int, str]]:
    """The surest right and the surest wrong predictions of each true class, as far as there are any.

    Not chosen by their maps: pictures of the best maps would show how good they can look, not how good they are.

    Args:
        y_true: (N,) integers; probabilities: (N, K).
        each: how many right ones, and how many wrong ones, of a class.

    Returns:
        (position, title) of each image, class by class, the right ones first.

    Raises:
        ExplanationError: arrays that do not fit.
    """
    y_true, probabilities = np.asarray(y_true), np.asarray(probabilities)
    if probabilities.shape != (len(y_true), len(classes)):
        raise ExplanationError(
            f"probabilities {probabilities.shape} for {len(y_true)} images of {len(classes)} classes: expected (N, K)."
        )
    predicted, sureness = probabilities.argmax(1), probabilities.max(1)
    found = []
    for label, name in enumerate(classes):
        for right in (True, False):
            those = np.flatnonzero((y_true == label) & ((predicted == label) == right))
            for i in those[np.argsort(-sureness[those], kind="stable")][:each]:
                said = "right" if right else f"called {classes[predicted[i]]}"
                found.append((int(i), f"{name}\n{said}, {sureness[i]:.2f}"))
    return found
