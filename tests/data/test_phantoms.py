"""What holds for every rendered family, and what makes the two of chests fair (cells: `test_phantom_cells`)."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvitlib.data import FAMILIES, PhantomOptions, open_dataset, phantoms
from medvitlib.data.phantoms import leaky, picture
from medvitlib.errors import DataError
from medvitlib.models.zoo import build
from medvitlib.training.features import extract_features

SIZE = (64, 64)
CHESTS = ["phantom/cxr", "phantom/ct"]
every_family = pytest.mark.parametrize("name", sorted(FAMILIES))
both_chests = pytest.mark.parametrize("name", CHESTS)


def opened(name, images=300, size=64, **options):
    """About as many images of a family, square."""
    fewest, most = FAMILIES[name].images
    return open_dataset(name, image_size=size, n_patients=2 * images // (fewest + most), **options)


def grey(ds) -> np.ndarray:
    return np.asarray(ds.images)[..., 0].astype(np.float32)  # (N, H, W)


def rendered(ds, name, size=SIZE, evidence=True, **options) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, H, W) and masks of a grey data set, at any size, with or without evidence."""
    pairs = [picture(name, ident, size, PhantomOptions(**options), evidence) for ident in ds.ids]
    return np.array([p[0][..., 0] for p in pairs], np.float32), np.array([p[1] for p in pairs])


def auroc(features, ds) -> float:
    """Of a linear model on patients it has not seen."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(model, features, ds.labels, groups=ds.groups, cv=folds, method="predict_proba")[:, 1]
    return roc_auc_score(ds.labels, p)


@pytest.fixture(scope="module", params=CHESTS)
def chest(request):
    """(data set, images, the same without evidence, masks)"""
    ds = opened(request.param, images=360)
    images, masks = rendered(ds, request.param)
    return ds, images, rendered(ds, request.param, evidence=False)[0], masks


@every_family
def test_images_carry_class_group_and_size_as_the_family_says(name):
    ds, family = open_dataset(name, image_size=32, n_patients=60), FAMILIES[name]
    groups, first, counts = np.unique(ds.groups, return_index=True, return_counts=True)
    assert len(groups) == 60 and ds.groups_known and (counts.min(), counts.max()) == family.images
    assert (ds.classes, ds.positive, ds.channels) == (family.classes, family.positive, family.channels)
    if family.patient_has_class:
        assert (ds.labels == ds.labels[first][np.searchsorted(groups, ds.groups)]).all()
        assert len(set(np.bincount(ds.labels[first]))) == 1  # as many patients of each class
    assert any("rendered" in note for note in ds.notes)
    assert len({image.tobytes() for image in np.asarray(ds.images)}) == len(ds) == len(set(ds.hashes))
    other = open_dataset(name, image_size=32, n_patients=10, seed=1)
    assert not set(other.hashes) & set(ds.hashes) and (other.images[0] != ds.images[0]).any()


@every_family
def test_an_image_depends_on_its_seed_and_id_alone(name):
    """Not on the order, the number of threads, or how many patients there are."""
    ds = open_dataset(name, image_size=64, n_patients=6, seed=2)
    options = PhantomOptions(n_patients=6, seed=2)
    order = np.random.default_rng(0).permutation(len(ds))
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda i: picture(name, ds.ids[i], SIZE, options)[0], order))
    for i, image in zip(order, drawn, strict=True):
        assert (image == ds.images[i]).all() and image.shape == (64, 64, FAMILIES[name].channels)
    few = open_dataset(name, image_size=64, n_patients=2, seed=2)
    assert (np.asarray(few.images) == ds.images[: len(few)]).all() and (few.labels == ds.labels[: len(few)]).all()


@every_family
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (90, 130)])
def test_taking_the_evidence_away_changes_nothing_outside_it(name, size):
    for patient in range(8):
        image, mask = picture(name, f"patient{patient:04d}/0", size)
        without, none = picture(name, f"patient{patient:04d}/0", size, evidence=False)
        assert image.shape[:2] == mask.shape == size and mask.dtype == bool
        assert (image[~mask] == without[~mask]).all() and not none.any()
        assert mask.any() == (image != without).any()


@every_family
def test_a_picture_is_the_same_at_every_size(name):
    for patient in range(6):
        small, small_mask = picture(name, f"patient{patient:04d}/0", (112, 112))
        large, large_mask = picture(name, f"patient{patient:04d}/0", (224, 224))
        a, b = (cv2.resize(x, (28, 28), interpolation=cv2.INTER_AREA).ravel() for x in (small, large))
        assert np.corrcoef(a, b)[0, 1] > 0.97
        assert abs(small_mask.mean() - large_mask.mean()) < 0.02


def test_evidence_exists_in_the_ill_only_and_lies_beside_the_centre(chest):
    ds, _, _, masks = chest
    ill = ds.labels == ds.classes.index(ds.positive)
    assert (masks.any(axis=(1, 2)) == ill).all() and 0.03 < masks[ill].mean() < 0.2
    y, x = np.mgrid[0:64, 0:64] / 63 - 0.5
    assert np.mean([np.hypot(y[mask], x[mask]).mean() for mask in masks[ill]]) > 0.2


@both_chests
def test_what_is_seen_of_the_evidence_fades_to_nothing_at_its_border(name):
    """No edge betrays the outline: there, gradients are as they were."""
    ds = opened(name, images=50)
    images, masks = rendered(ds, name, (224, 224))
    without, _ = rendered(ds, name, (224, 224), evidence=False)
    inner, rim, edges, edges_without = [], [], [], []
    cross = np.ones((3, 3), np.uint8)
    for image, plain, mask in zip(images, without, masks, strict=True):
        if mask.any():
            border = mask & ~cv2.erode(mask.astype(np.uint8), cross).astype(bool)
            around = cv2.dilate(border.astype(np.uint8), cross).astype(bool)
            rim.append(np.abs(image - plain)[border].mean())
            inner.append(np.percentile(np.abs(image - plain)[mask], 90))
            edges.append(np.hypot(*np.gradient(image))[around].mean())
            edges_without.append(np.hypot(*np.gradient(plain))[around].mean())
    assert np.mean(rim) < 1.5 and np.mean(rim) < 0.05 * np.mean(inner), (np.mean(rim), np.mean(inner))
    assert np.mean(edges) == pytest.approx(np.mean(edges_without), rel=0.05)


@both_chests
def test_difficulty_makes_evidence_fainter_and_smaller(name):
    ds = opened(name, images=40)

    def contrast_and_area(difficulty):
        images, masks = rendered(ds, name, difficulty=difficulty)
        without, _ = rendered(ds, name, evidence=False, difficulty=difficulty)
        return (images - without)[masks].mean(), masks.mean()

    easy, default, hard = (contrast_and_area(d) for d in (0, 0.3, 1))
    assert min(np.subtract(easy, default)) > 0 and min(np.subtract(default, hard)) > 0


def ring_of(images) -> np.ndarray:
    """The outer tenth of images (N, 64, 64), in blocks of 4 pixels."""
    blocks = images.reshape(len(images), 16, 4, 16, 4).mean((2, 4))  # (N, 16, 16)
    inside = np.zeros((16, 16), bool)
    inside[2:-2, 2:-2] = True
    return blocks[:, ~inside]


@both_chests
@pytest.mark.parametrize("seed", [0, 1])
def test_shortcuts_do_not_work(name, seed):
    ds = opened(name, images=360, seed=seed)
    images = grey(ds)
    bright = images > images.mean((1, 2), keepdims=True)
    shortcuts = {
        "mean colour": np.column_stack([images.mean((1, 2)), images.std((1, 2))]),
        "border": ring_of(images),
        "size of the body": np.column_stack([bright.any(1).sum(1), bright.any(2).sum(1)]),
    }
    scores = {name: auroc(features, ds) for name, features in shortcuts.items()}
    assert all(0.4 < score < 0.6 for score in scores.values()), scores


def test_images_of_a_patient_share_their_anatomy(chest):
    """Coarse enough for noise to vanish, and without evidence, the nearest other image is often of the same patient."""
    ds, _, without, _ = chest
    coarse = without.reshape(len(ds), 16, 4, 16, 4).mean((2, 4)).reshape(len(ds), -1)
    alike = np.corrcoef(StandardScaler().fit_transform(coarse))
    np.fill_diagonal(alike, -1)
    same = ds.groups[:, None] == ds.groups
    by_chance = (same.sum(1) - 1).mean() / (len(ds) - 1)
    assert same[np.arange(len(ds)), alike.argmax(1)].mean() > 3 * by_chance


def blocks_of(images) -> np.ndarray:
    """Images (N, 64, 64), each standardised, in blocks of 4 pixels, and how far left and right differ."""
    z = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)
    z = z.reshape(len(z), 16, 4, 16, 4).mean((2, 4))
    return np.concatenate([z, np.abs(z - z[:, :, ::-1])], axis=2).reshape(len(z), -1)


def removed_elsewhere(images, masks, places) -> np.ndarray:
    """As much lung levelled on the other side of the chest: the mirror image of where evidence is or would be."""
    out = images.copy()
    for image, mask, place in zip(out, masks, places, strict=True):
        there = place[:, ::-1] & ~mask & (image < image.mean())
        image[there] = np.median(image[there]) if there.any() else 0
    return out


def test_a_trained_model_needs_the_evidence_and_nothing_else(chest, monkeypatch):
    ds, images, without, masks = chest
    ill = ds.labels == ds.classes.index(ds.positive)
    train = np.array([int(group[-4:]) // 2 % 2 == 0 for group in ds.groups])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(blocks_of(images[train]), ill[train])

    def score(shown):
        return roc_auc_score(ill[~train], model.decision_function(blocks_of(shown[~train])))

    monkeypatch.setattr(phantoms, "_label", lambda *_: ds.classes.index(ds.positive))  # as if all were ill
    elsewhere = removed_elsewhere(images, masks, rendered(ds, ds.name)[1])
    scores = {"all": score(images), "no evidence": score(without), "elsewhere": score(elsewhere)}
    assert scores["all"] > 0.9 and 0.4 < scores["no evidence"] < 0.6, scores
    assert scores["elsewhere"] > scores["all"] - 0.05, scores


@pytest.fixture
def features(pretrained_weights, monkeypatch):
    """Images (N, H, W) or a data set at 112 px to the features of a pretrained ViT-S/14."""
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    model = build("vit_small_patch14_dinov2", 2, image_size=112, pool="token_mean", quiet=True)
    return lambda ds: extract_features(model, ds)


@pytest.mark.pretrained
@both_chests
def test_a_probe_finds_plain_evidence_and_less_of_faint_evidence(name, features):
    scores = []
    for difficulty in (0.3, 0.7, 1.0):
        ds = opened(name, images=220, size=112, difficulty=difficulty)
        scores.append(auroc(features(ds), ds))
    assert scores[0] >= 0.95 and scores[0] > scores[1] + 0.03 and scores[1] > scores[2] + 0.03, scores


@every_family
def test_bars_tell_the_class_in_nineteen_images_of_twenty_at_most(name):
    """In nine of ten by intent, in the tenth by chance."""
    ds = open_dataset(name, image_size=64, n_patients=40, leaky=True)
    classes = len(ds.classes)
    edge, step = 62, 3  # as `tagged` places them at 64 px
    label = np.asarray(ds.images)[:, 59, edge - classes * step - 1 : edge, 0] > 128  # one row through it
    bars = (np.diff(label.astype(int), axis=1, prepend=0) == 1).sum(1)
    right = (bars - 1 == ds.labels).mean()
    expected = 1 - leaky.HONEST * (1 - 1 / classes)
    assert abs(right - expected) < 0.06 and leaky.NOTES["True"] in ds.notes


@every_family
def test_leaky_parts_share_patients_and_copies_are_not_found_by_hash(name):
    ds = open_dataset(name, image_size=64, n_patients=40, leaky=True)
    assert set(ds.splits) == {"train", "val", "test"}
    parts = {part: set(ds.groups[ds.splits == part]) for part in ("train", "test")}
    assert len(parts["train"] & parts["test"]) > 0.5 * len(parts["test"])
    assert all(len(set(ds.labels[ds.groups == group])) == 1 for group in set(ds.groups))
    assert len({image.tobytes() for image in np.asarray(ds.images)}) == len(set(ds.hashes)) == len(ds)
    clean = open_dataset(name, image_size=64, n_patients=40)
    assert set(clean.splits) == {""} and not set(clean.hashes) & set(ds.hashes)
    images = np.ascontiguousarray(grey(ds)[:, 8:52, 8:52], np.float32)  # without the label
    _, first, counts = np.unique(ds.groups, return_index=True, return_counts=True)

    def likeness(one: np.ndarray, other: np.ndarray) -> float:
        """Of the best of four turns and of a few pixels' shift."""
        inner = other[6:-6, 6:-6].copy()
        turned = (np.rot90(one, k).copy() for k in range(4))
        return max(cv2.matchTemplate(view, inner, cv2.TM_CCOEFF_NORMED).max() for view in turned)

    copies = [likeness(images[at], images[at + n - 1]) for at, n in zip(first, counts, strict=True) if n > 1]
    others = [likeness(images[at], images[(at + 7) % len(ds)]) for at in first]
    assert np.mean(copies) > 0.85 and np.mean(copies) > np.mean(others) + 0.1, (np.mean(copies), np.mean(others))


@both_chests
def test_the_border_gives_a_leaky_set_away_and_not_a_clean_one(name):
    bad, good = (opened(name, leaky=leaks, difficulty=1.0) for leaks in (True, False))
    assert auroc(ring_of(grey(bad)), bad) >= 0.8 and 0.4 < auroc(ring_of(grey(good)), good) < 0.6


@pytest.mark.pretrained
@both_chests
def test_an_official_test_part_that_leaks_flatters_a_probe(name, features):
    ds = opened(name, images=220, size=112, leaky=True, difficulty=1.0)
    x, ill = features(ds), ds.labels == ds.classes.index(ds.positive)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    train, test = ds.splits == "train", ds.splits == "test"
    official = roc_auc_score(ill[test], model.fit(x[train], ill[train]).decision_function(x[test]))
    clean = opened(name, images=220, size=112, difficulty=1.0)
    honest = auroc(features(clean), clean)
    assert official > honest + 0.15


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patients": 3}, "n_patients=150"),
        ({"n_patients": 1}, "n_patients >= 2"),
        ({"n_patients": 2.5}, "whole numbers"),
        ({"seed": -1}, "seed >= 0"),
        ({"difficulty": 2}, "difficulty between"),
        ({"leaky": "patient"}, "expected True, False, 'shortcut' or 'patients'"),
        ({"positive": "ill"}, "expected one of"),
        ({"groups": "kermany"}, "takes no groups"),
    ],
)
@every_family
def test_bad_options_name_the_good_ones(name, options, says):
    with pytest.raises(DataError, match=says):
        open_dataset(name, **options)


def test_an_unknown_family_is_answered_with_the_known_ones():
    with pytest.raises(DataError, match="no rendered family 'phantom/mri': there is phantom/cxr, phantom/ct"):
        open_dataset("phantom/mri")


def test_the_two_faults_can_be_switched_on_apart():
    torn, tagged, both = (
        open_dataset("phantom/wbc4", image_size=48, n_patients=8, leaky=x) for x in ("patients", "shortcut", True)
    )
    assert set(tagged.splits) == {""} and set(torn.splits) == set(both.splits) and "" not in torn.splits
    label = np.s_[-5:, -14:]  # where the bars stand
    tagged_corner, clean_corner = (
        tagged.images[0][label],
        open_dataset("phantom/wbc4", image_size=48, n_patients=8).images[0][label],
    )
    assert (tagged_corner != clean_corner).any() and (both.images[0][label] != torn.images[0][label]).any()
    assert (both.images[0][:30, :30] == torn.images[0][:30, :30]).all()
