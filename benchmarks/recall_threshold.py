"""Simulate what three thresholds do on new patients: 0.5, the published recall-first rule, and the rule of the report.

    python benchmarks/recall_threshold.py

Half of the patients are ill, each has 1 to 4 images. A threshold is chosen on `patients` of them for 95 % recall, and
judged on 500 others, 400 times over. `separation` is the distance of the classes, in standard deviations of a patient.
"""

import numpy as np

from medvitlib.evaluation import choose_recall_threshold, choose_threshold_by_min_recall

REPEATS = 400
RULES = ("0.5", "published", "recall")


def draw(patients: int, separation: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (N,), scores (N,) and patients (N,) of images."""
    ill = rng.integers(2, size=patients)
    ill[:2] = 0, 1
    group = np.repeat(np.arange(patients), rng.integers(1, 5, size=patients))
    logit = separation * (ill - 0.5) + rng.normal(size=patients)
    return ill[group], 1 / (1 + np.exp(-logit[group] - rng.normal(size=len(group)))), group


def simulate(patients: int, separation: float) -> np.ndarray:
    """Return recall and specificity on new patients, (repeats, rules, 2)."""
    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        y, p, groups = draw(patients, separation, rng)
        new_y, new_p, _ = draw(500, separation, rng)
        rules = choose_threshold_by_min_recall, choose_recall_threshold
        thresholds = [0.5, *(rule(y, p, 0.95, groups).threshold for rule in rules)]
        found.append([((new_p[new_y == 1] >= t).mean(), (new_p[new_y == 0] < t).mean()) for t in thresholds])
    return np.array(found)


if __name__ == "__main__":
    print("| separation | patients | " + " | ".join(RULES) + " | specificity of each |")
    print("|" + "---|" * (3 + len(RULES)))
    for separation in (0.5, 2.0, 6.0, 12.0):
        for patients in (20, 50, 200):
            recall, specificity = np.moveaxis(simulate(patients, separation), 2, 0)
            means, lows = recall.mean(0), np.quantile(recall, 0.05, axis=0)
            cells = [f"{mean:.2f} ({low:.2f})" for mean, low in zip(means, lows, strict=True)]
            cells.append(", ".join(f"{mean:.2f}" for mean in specificity.mean(0)))
            print(f"| {separation:g} | {patients} | {' | '.join(cells)} |")
