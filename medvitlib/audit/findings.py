"""What an audit's numbers mean, in sentences, ordered by how much each can inflate a result."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.audit.leaks import TRAIN_SHARE, exposed, overlap
from medvitlib.evaluation import Estimate

if TYPE_CHECKING:
    from medvitlib.audit import Audit

CHANCE, NOTABLE = 0.5, 0.55
"""AUROC of a guess, and the lower end of an interval above which a shortcut is worth a sentence."""


@dataclass(frozen=True)
class Finding:
    """One sentence or two, and how far it can inflate a result, 0 to 1.

    The weight of a leak is the share of evaluated images with a relative in training; of a shortcut 2 (AUROC - 0.5), at
    the lower end of its interval (half of that where the disease itself may be seen); of the gap between two ways to
    split, the difference of the AUROCs. What does not raise a score but the trust in it weighs a tenth of its share.
    """

    weight: float
    text: str


def findings(audit: "Audit") -> list[Finding]:
    """All of them, the weightiest first."""
    found = [
        *_groups_on_both_sides(audit),
        *_copies(audit),
        *_two_labels(audit),
        *_shortcuts(audit),
        *_gap(audit),
        *_effective_size(audit),
        *_labels(audit),
        *_files(audit),
    ]
    return sorted(found, key=lambda finding: -finding.weight)


def _groups_on_both_sides(audit: "Audit") -> list[Finding]:
    ds, found = audit.dataset, []
    if not ds.groups_known:
        text = (
            "Which images belong to one patient is not known. Whatever shares a patient across a split inflates the "
            "score; add a groups.csv, or split(ds, by='clusters'), which keeps at least near-duplicates together."
        )
        return [Finding(0.05, text)]
    if (most := _most_exposed(ds.splits, ds.groups)) is not None:
        text = (
            f"{most.shared} groups stand in {most.one} and in {most.other}: {most.images} of {most.of} {most.other} "
            f"images ({most.images / most.of:.0%}) are of a patient seen in {most.one}. Merge the parts and split by "
            "group."
        )
        found.append(Finding(most.images / most.of, text))
    if not (ds.splits != "").any() and (share := exposed(ds.groups)) > 0:
        text = (
            f"There is no official split. A random one by image, {TRAIN_SHARE:.0%} for training, would put "
            f"{share:.0%} of the test images beside another of the same group; split(ds) does not."
        )
        found.append(Finding(0.1 * share, text))
    return found


def _copies(audit: "Audit") -> list[Finding]:
    ds, found = audit.dataset, []
    pairs = audit.pairs
    if (most := _most_exposed(ds.splits, audit.clusters)) is not None:
        both = pairs.split_a.isin([most.one, most.other]) & pairs.split_b.isin([most.one, most.other])
        kinds = pairs[both & (pairs.split_a != pairs.split_b)].how.value_counts()
        text = (
            f"{most.images} of {most.of} {most.other} images ({most.images / most.of:.0%}) show what an image in "
            f"{most.one} shows ({_kinds(kinds)}). A model that remembers {most.one} is right on them for nothing."
        )
        found.append(Finding(most.images / most.of, text))
    sizes = np.bincount(audit.clusters)
    many = sizes[sizes > 1]
    if len(many):
        share = exposed(audit.clusters)
        text = (
            f"{many.sum()} of {len(ds)} images lie in {len(many)} clusters of near-duplicates "
            f"({_kinds(pairs.how.value_counts())}; the largest has {many.max()} images)."
        )
        if not ds.groups_known:
            text += (
                f" A random split would put {share:.0%} of the test images beside one of its own cluster in "
                "training; split(ds, by='clusters') keeps clusters together."
            )
        found.append(Finding(share * (0.1 if ds.groups_known else 1.0), text))
    if crossing := int(pairs.across.str.contains("groups").sum()):
        text = (
            f"{crossing} pairs of near-duplicates stand under two different groups: the groups are not complete. "
            "split(ds, by='clusters') joins them."
        )
        found.append(Finding(min(1.0, crossing / len(ds)), text))
    return found


def _most_exposed(splits: np.ndarray, keys: np.ndarray):
    """The row of `overlap` with the largest share of images, the test part first among equals; None without any."""
    table = overlap(splits, keys)
    rows = sorted(table[table.shared > 0].itertuples(), key=lambda row: (row.images / row.of, row.other))
    return rows[-1] if rows else None


def _kinds(counted) -> str:
    return ", ".join(f"{n} pairs: {how}" for how, n in counted.items())


def _two_labels(audit: "Audit") -> list[Finding]:
    wrong = audit.pairs[audit.pairs.across.str.contains("classes")]
    found = []
    if len(wrong):
        row = wrong.iloc[0]
        text = (
            f"{len(wrong)} pairs of near-duplicates have two labels, the first {row.image_a} ({row.class_a}) and "
            f"{row.image_b} ({row.class_b}): one of the two is wrong, or the classes can occur together."
        )
        found.append(Finding(min(1.0, 2 * len(wrong) / len(audit.dataset)), text))
    mixed = audit.mixed_groups
    if mixed:
        text = f"{mixed} groups have images of several classes. That can be right (cells of one smear), or an error."
        found.append(Finding(0.0, text))
    return found


_MEANS = {
    "mean colour": "stain, exposure or scanner differ between the classes. A model may use that, not the disease",
    "image and file size": "the classes come from files of different size or kind, so perhaps from different sources",
    "border ring": "markers, frames or positioning differ between the classes. A model may use that, not the disease",
    "centre masked": "expected where the disease lies off the centre, a shortcut where it does not",
}


def _shortcuts(audit: "Audit") -> list[Finding]:
    found = []
    for name, estimate in audit.baselines.items():
        if not isinstance(estimate, Estimate) or not estimate.low > NOTABLE:
            continue
        share = 1 if name == "centre masked" else 2  # half of the first may be the disease itself
        text = f"{name.capitalize()} alone reaches AUROC {estimate}: {_MEANS[name]}."
        found.append(Finding(share * (estimate.low - CHANCE), text))
    return found


def _gap(audit: "Audit") -> list[Finding]:
    if audit.gap is None:
        return []
    by_image, by_unit = audit.gap["by image"], audit.gap["by unit"]
    difference = by_image.value - by_unit.value
    if not difference > 0.005:
        return []
    text = (
        f"One and the same classifier reaches AUROC {by_image} in a cross-validation by image and {by_unit} when units "
        "stay together. The difference is memory, not skill."
    )
    return [Finding(difference, text)]


def _effective_size(audit: "Audit") -> list[Finding]:
    n, units = len(audit.dataset), int(audit.units.max()) + 1
    if units == n:
        return []
    text = (
        f"The {n} images come from {units} independent units. Count those: an interval computed from images is up to "
        f"{np.sqrt(n / units):.1f} times too narrow."
    )
    return [Finding(0.1 * (1 - units / n), text)]


def _labels(audit: "Audit") -> list[Finding]:
    if not len(audit.suspects):
        return []
    n = len(audit.suspects)
    text = (
        f"{n} images ({n / len(audit.dataset):.0%}) look like another class to a classifier that never saw them. "
        "Some labels may be wrong, some images hard: look at the first ones."
    )
    return [Finding(0.01 * n / len(audit.dataset), text)]


def _files(audit: "Audit") -> list[Finding]:
    if not (bad := audit.dataset.quarantine):
        return []
    return [Finding(0.0, f"{len(bad)} files are left out, the first {bad[0].path}: {bad[0].reason}.")]
