"""What an audit's numbers mean, in sentences, ordered by how much each can inflate a result."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.audit.leaks import TRAIN_SHARE, exposed, overlap
from medvitlib.data.near import CERTAIN
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
        *_headers(audit),
    ]
    return sorted(found, key=lambda finding: -finding.weight)


def _groups_on_both_sides(audit: "Audit") -> list[Finding]:
    ds, found = audit.dataset, []
    if not ds.groups_known:
        text = (
            "Which images belong to one patient is not known for all. Whatever shares a patient across a split "
            "inflates the score; add a groups.csv, or split(ds, by='clusters'), which keeps at least near-duplicates "
            "together."
        )
        found.append(Finding(0.05, text))
    for most in _exposed_parts(ds.splits, ds.groups):
        text = (
            f"{some(most.shared, 'group')} in {most.one} and in {most.other}: {most.images} of {most.of} {most.other} "
            f"images ({most.images / most.of:.1%}) are of a patient seen in {most.one}. Merge the parts and split by "
            "group."
        )
        found.append(Finding(most.images / most.of, text))
    if not (ds.splits != "").any() and (share := exposed(ds.groups)) > 0:
        text = (
            f"There is no official split. A random one by image, {TRAIN_SHARE:.0%} for training, would put "
            f"{share:.1%} of the test images beside another of the same group; split(ds) does not."
        )
        found.append(Finding(0.1 * share, text))
    return found


def _copies(audit: "Audit") -> list[Finding]:
    ds, found = audit.dataset, []
    pairs = audit.pairs
    for most in _exposed_parts(ds.splits, audit.clusters):
        both = pairs.split_a.isin([most.one, most.other]) & pairs.split_b.isin([most.one, most.other])
        kinds = pairs[both & (pairs.split_a != pairs.split_b)].how.value_counts()
        text = (
            f"{most.images} of {most.of} {most.other} images ({most.images / most.of:.1%}) are near-duplicates of an "
            f"image in {most.one} ({_kinds(kinds) or 'by way of a third'}). Those that show the same are no test of "
            f"what has learnt from {most.one}."
        )
        found.append(Finding(most.images / most.of, text))
    sizes = np.bincount(audit.clusters)
    many = sizes[sizes > 1]
    if len(many):
        share = exposed(audit.clusters)
        text = (
            f"{many.sum()} of {len(ds)} images lie in {some(len(many), 'cluster')} of near-duplicates "
            f"({_kinds(pairs.how.value_counts())}; the largest has {many.max()} images)."
        )
        alone = not ds.groups_known and not (ds.splits != "").any()  # nothing but the clusters keeps copies together
        if alone:
            text += (
                f" A random split would put {share:.1%} of the test images beside one of its own cluster in "
                "training; split(ds, by='clusters') keeps clusters together."
            )
        found.append(Finding(share * (1.0 if alone else 0.1), text))
    crossing = pairs[pairs.across.str.contains("groups")]
    sure = crossing.how.isin(CERTAIN)
    if sure.any():
        row = crossing[sure].iloc[0]
        text = (
            f"{some(int(sure.sum()), 'pair')} of copies under two different groups, the first {row.image_a} "
            f"({row.group_a}) and {row.image_b} ({row.group_b}): one patient with two names, or one image filed "
            "twice. Look at them and correct the groups or remove a file."
        )
        found.append(Finding(min(1.0, sure.sum() / len(ds)), text))
    if not sure.all():
        row = crossing[~sure].iloc[0]
        text = (
            f"{some(int((~sure).sum()), 'pair')} of images that are alike under two different groups, the first "
            f"{row.image_a} ({row.group_a}) and {row.image_b} ({row.group_b}). Two patients can look as alike as "
            "this: look before you change anything."
        )
        found.append(Finding(0.1 * min(1.0, (~sure).sum() / len(ds)), text))
    return found


def _exposed_parts(splits: np.ndarray, keys: np.ndarray) -> list:
    """For test, then val, the row of `overlap` with the largest share of its images, if any."""
    table = overlap(splits, keys)
    parts = [table[(table.other == part) & (table.shared > 0)] for part in ("test", "val")]
    return [max(rows.itertuples(), key=lambda row: row.images) for rows in parts if len(rows)]


def some(n: int, what: str) -> str:
    """Count things in words: "1 pair", "2 pairs"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _kinds(counted) -> str:
    return ", ".join(f"{some(n, 'pair')}: {how}" for how, n in counted.items())


def _two_labels(audit: "Audit") -> list[Finding]:
    wrong = audit.pairs[audit.pairs.across.str.contains("classes")]
    found = []
    if len(wrong):
        row = wrong.iloc[0]
        text = (
            f"Two labels for {some(len(wrong), 'pair')} of near-duplicates, the first {row.image_a} ({row.class_a}) "
            f"and {row.image_b} ({row.class_b}): one of the two is wrong, or the classes can occur together."
        )
        found.append(Finding(min(1.0, 2 * len(wrong) / len(audit.dataset)), text))
    mixed = audit.mixed_groups
    if mixed:
        text = f"Images of several classes in {some(mixed, 'group')}: right (cells of one smear), or an error."
        found.append(Finding(0.0, text))
    return found


_MEANS = {
    "mean colour": "stain, exposure or scanner differ between the classes. A model may use that, not the disease",
    "image and file size": "the classes come from files of different size or kind, so perhaps from different sources",
    "border ring": "markers, frames or positioning differ between the classes. A model may use that, not the disease",
    "centre masked": "expected where the disease lies off the centre, a shortcut where it does not",
}
_METADATA = (
    "the classes differ in it. What a model can see of it (a scanner's noise, a bed in the picture) it may use, not "
    "the disease; compare within its values"
)


def _shortcuts(audit: "Audit") -> list[Finding]:
    found = []
    for name, estimate in audit.baselines.items():
        if not isinstance(estimate, Estimate) or not estimate.low > NOTABLE:
            continue
        share = 1 if name == "centre masked" else 2  # half of the first may be the disease itself
        text = f"{name[0].upper()}{name[1:]} alone reaches AUROC {estimate}: {_MEANS.get(name, _METADATA)}."
        found.append(Finding(share * (estimate.low - CHANCE), text))
    return found


def _gap(audit: "Audit") -> list[Finding]:
    if audit.gap is None:
        return []
    by_image, apart, difference = audit.gap["by image"], list(audit.gap.values())[-1], audit.difference
    if not difference.value > 0.005:
        return []
    text = (
        f"One and the same classifier reaches AUROC {by_image['auroc']} and accuracy {by_image['accuracy']} when it is "
        f"cross-validated by image, and {apart['auroc']} and {apart['accuracy']} when units stay together. The "
        f"difference, {difference}, {'is memory, not skill' if difference.low > 0 else 'may be memory or chance'}."
    )
    return [Finding(difference.value, text)]


def _effective_size(audit: "Audit") -> list[Finding]:
    n, sizes = len(audit.dataset), np.bincount(audit.units)
    units = len(sizes)
    if n < 1.1 * units:
        return []
    most = np.sqrt((sizes**2).sum() / n)  # of a mean, where all images of a unit say the same (Kish's design effect)
    text = (
        f"The {n} images come from {some(units, 'independent unit')}. Count those: an interval computed from images "
        f"is up to {most:.1f} times too narrow."
    )
    return [Finding(0.1 * (1 - units / n), text)]


def _labels(audit: "Audit") -> list[Finding]:
    if not len(audit.suspects):
        return []
    n = len(audit.suspects)
    text = (
        f"{n} images ({n / len(audit.dataset):.1%}) look like another class to a classifier that never saw them. "
        "Some labels may be wrong, some images hard: look at the first ones."
    )
    if audit.gap and not list(audit.gap.values())[-1]["auroc"].low > CHANCE:
        text += " But the classifier does no better than a guess here, so little follows."
    return [Finding(0.01 * n / len(audit.dataset), text)]


def _files(audit: "Audit") -> list[Finding]:
    if not (bad := audit.dataset.quarantine):
        return []
    return [Finding(0.0, f"Left out: {some(len(bad), 'file')}, the first {bad[0].path}: {bad[0].reason}.")]


def _headers(audit: "Audit") -> list[Finding]:
    """What DICOM headers say of the pictures."""
    columns, found = audit.dataset.metadata, []
    marked = int((columns.get("BurnedInAnnotation", np.array([])) == "YES").sum())
    if marked:
        text = (
            f"{some(marked, 'image')} with text in the picture, says the DICOM header (BurnedInAnnotation): names or "
            "dates a model can read, and nobody else should. Cover or remove them."
        )
        found.append(Finding(0.1 * marked / len(audit.dataset), text))
    kinds, counts = np.unique(columns.get("PhotometricInterpretation", np.array([], str)), return_counts=True)
    if len(kinds) > 1:
        told = ", ".join(f"{n} {kind or 'no DICOM files'}" for kind, n in zip(kinds, counts, strict=True))
        text = (
            f"Photometric interpretations are mixed ({told}). They are shown alike, but come from different machines "
            "or exports: see that these do not go with the classes."
        )
        found.append(Finding(0.0, text))
    return found
