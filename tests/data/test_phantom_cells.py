from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvitlib.data import PhantomOptions, open_dataset
from medvitlib.data.cache import stored
from medvitlib.data.loading import Images
from medvitlib.data.phantoms import FAMILIES, picture
from medvitlib.data.phantoms.canvas import Shot
from medvitlib.models.zoo import build
from medvitlib.training.features import extract_features

CELLS = ("phantom/blood3", "phantom/wbc4")
BACKGROUND = 0
PROBA = "predict_proba"

pytestmark = pytest.mark.parametrize("name", CELLS)


@pytest.fixture(scope="module")
def sets():
    """Each set and its masks, rendered once."""
    found = {}
    for name in CELLS:
        ds = open_dataset(name, image_size=48)
        found[name] = ds, np.array([ds.mask(i) for i in range(len(ds))])
    return found


def empty(name, labels):
    return (np.asarray(labels) == BACKGROUND) & (name == "phantom/blood3")


def probe(strength=1.0):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def auroc(features, ds, strength=1.0) -> float:
    """One class against the rest, mean over classes, of a probe on patients that it was not trained on."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    model = probe(strength)
    return macro(ds.labels, cross_val_predict(model, features, ds.labels, groups=ds.groups, cv=folds, method=PROBA))


def macro(labels, p) -> float:
    return float(np.mean([roc_auc_score(labels == c, p[:, k]) for k, c in enumerate(np.unique(labels))]))


def test_a_smear_has_three_to_six_images_of_any_class(name, sets):
    ds, _ = sets[name]
    groups, counts = np.unique(ds.groups, return_counts=True)
    assert len(groups) == 150 and ds.groups_known and set(counts) == {3, 4, 5, 6} and 600 <= len(ds) <= 750
    assert (np.bincount(ds.labels) > 0.8 * len(ds) / len(ds.classes)).all()
    several = [len(set(ds.labels[ds.groups == group])) > 1 for group in groups]
    assert all(several) and ds.positive is None and ds.channels == 3 and FAMILIES[name].any_way_up


def test_an_image_depends_on_its_seed_and_id_alone(name, sets):
    ds, _ = sets[name]
    chosen = [5, 100, 3, 5, 77, 3, 100] * 3
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda i: picture(name, ds.ids[i], (48, 48))[0], chosen))
    assert all((image == ds.images[i]).all() for i, image in zip(chosen, again, strict=True))
    assert len({image.tobytes() for image in np.asarray(ds.images)}) == len(ds)
    other = picture(name, ds.ids[0], (48, 48), PhantomOptions(seed=1))[0]
    assert (other != ds.images[0]).any()


def test_a_picture_is_the_same_at_every_size(name):
    for patient in range(6):
        small, large = (picture(name, f"patient{patient:04d}/0", (side, side)) for side in (56, 224))
        shrunk = cv2.resize(large[0], (56, 56), interpolation=cv2.INTER_AREA).astype(float)
        blurred = [cv2.GaussianBlur(image.astype(float), (0, 0), 1.5) for image in (shrunk, small[0])]
        assert np.corrcoef(blurred[0].ravel(), blurred[1].ravel())[0, 1] > 0.97
        assert abs(small[1].mean() - large[1].mean()) < 0.02
    for patient in range(40):  # not even a speck at the border is too small to draw
        picture(name, f"patient{patient:04d}/0", (9, 7))
    image, mask = picture(name, "patient0000/0", (40, 72))
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((40, 72, 3), np.uint8, (40, 72), bool)


def test_only_background_has_no_evidence(name, sets):
    ds, masks = sets[name]
    assert (masks.any(axis=(1, 2)) == ~empty(name, ds.labels)).all()
    assert 0.05 < masks[~empty(name, ds.labels)].mean() < 0.2


@pytest.mark.parametrize("size", [(48, 48), (224, 224), (90, 130)])
def test_taking_the_evidence_away_changes_nothing_outside_it(name, size, sets):
    ds, _ = sets[name]
    for i in np.flatnonzero(~empty(name, ds.labels))[:16]:
        image, mask = picture(name, ds.ids[i], size)
        without, none = picture(name, ds.ids[i], size, evidence=False)
        assert (image[~mask] == without[~mask]).all() and not none.any()
        assert (image[mask] != without[mask]).any(axis=1).mean() > 0.8


def test_without_evidence_a_picture_is_the_same_whatever_its_class(name):
    family = FAMILIES[name]
    for patient in range(8):
        shot = Shot(patient=(0, patient), image=(1, patient), label=0, difficulty=0.3, size=(64, 64))
        shots = [replace(shot, label=label) for label in range(len(family.classes))]
        bare = [family.draw(shot, False)[0] for shot in shots]
        shown = [family.draw(shot, True) for shot in shots]
        rest = ~np.any([mask for _, mask in shown], axis=0)
        assert all((image == bare[0]).all() for image in bare)
        assert all((image[rest] == bare[0][rest]).all() for image, _ in shown)
        assert len({image.tobytes() for image, _ in shown}) == len(shots)


def test_evidence_lies_beside_the_centre_on_every_side(name, sets):
    _, masks = sets[name]
    y, x = np.mgrid[0:48, 0:48] / 47 - 0.5
    middles = np.array([(x[mask].mean(), y[mask].mean()) for mask in masks if mask.any()])
    assert np.hypot(*middles.T).mean() > 0.12
    sides = np.floor(np.arctan2(*middles.T) / (np.pi / 4)).astype(int) + 4
    assert (np.bincount(sides, minlength=8)[:8] > 0.06 * len(middles)).all()


def test_outlines_tell_no_class_of_red_cell_and_little_of_white_cell(name, sets):
    ds, masks = sets[name]
    seen = masks.any(axis=(1, 2))
    shapes = np.array([outline(mask) for mask in masks[seen]])
    score = auroc(shapes, ds.subset(np.flatnonzero(seen)))
    if name == "phantom/blood3":
        assert 0.4 < score < 0.6
    else:  # monocytes are large and lymphocytes small, as they are, with much overlap
        assert 0.55 < score < 0.8


def outline(mask) -> tuple[float, float]:
    """Area, and eccentricity from the second moments."""
    moments = cv2.moments(mask.astype(np.uint8), True)
    short, long = np.linalg.eigvalsh([[moments["nu20"], moments["nu11"]], [moments["nu11"], moments["nu02"]]])
    return mask.mean(), np.sqrt(1 - short / long)


@pytest.mark.parametrize("seed", [0, 1])
def test_shortcuts_do_not_work(name, seed, sets):
    ds = sets[name][0] if seed == 0 else open_dataset(name, image_size=48, seed=seed)
    pixels = np.asarray(ds.images).reshape(len(ds), 48 * 48, 3).astype(float)
    inner = np.zeros((48, 48), bool)
    inner[5:-5, 5:-5] = True
    ring = pixels[:, ~inner.ravel()]
    shortcuts = {
        "colour": np.concatenate([pixels.mean(1), pixels.std(1)], axis=1),
        "border": np.concatenate([ring.mean(1), ring.std(1)], axis=1),
    }
    scores = {what: auroc(features, ds) for what, features in shortcuts.items()}
    assert all(0.4 < score < 0.6 for score in scores.values()), scores


@pytest.mark.pretrained
def test_a_probe_reads_the_evidence_and_nothing_else(name, pretrained_weights, monkeypatch):
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    model = build("vit_small_patch14_dinov2", 2, pool="token_mean", image_size=112, quiet=True)
    ds = open_dataset(name, image_size=112, n_patients=62)
    features = extract_features(model, ds)
    assert auroc(features, ds, 0.1) >= 0.95
    few = np.flatnonzero(ds.groups < "patient0040")
    scores = [auroc(features[few], ds.subset(few), 0.1)]
    for difficulty in (0.7, 1.0):
        harder = open_dataset(name, image_size=112, n_patients=40, difficulty=difficulty)
        scores.append(auroc(extract_features(model, harder), harder, 0.1))
    assert scores[0] > scores[1] + 0.02 > scores[2] + 0.07 and scores[2] < 0.8, scores

    trained = probe(0.1).fit(features[few], ds.labels[few])
    held_out = ds.subset(np.flatnonzero(ds.groups >= "patient0040"))
    without = [picture(name, ident, (112, 112), evidence=False)[0] for ident in held_out.ids]
    masks = [held_out.mask(i) for i in range(len(held_out))]
    usual = [mask for mask in masks if mask.any()]
    elsewhere = [  # a background has no evidence, and loses as much as another picture
        patched(image, mask, mask if mask.any() else usual[i % len(usual)], without[i - 1])
        for i, (image, mask) in enumerate(zip(np.asarray(held_out.images), masks, strict=True))
    ]

    def score(what, images):
        kept = stored({"test": what, "of": name}, len(images), (112, 112), lambda i: images[i], iter((3,)))
        hashes = np.array([f"{what} {h}" for h in held_out.hashes])
        changed = replace(held_out, images=Images(kept, np.arange(len(images))), hashes=hashes)
        return macro(changed.labels, trained.predict_proba(extract_features(model, changed)))

    assert 0.4 < score("without", without) < 0.6
    assert score("elsewhere", elsewhere) > 0.8


def patched(image, mask, shape, other):
    """The image with a hole as large as `shape`, beside its own mask, through which another picture is seen."""
    h, w = mask.shape
    shifts = [(dy, dx) for dy in range(0, h, h // 8) for dx in range(0, w, w // 8)]
    moved = min((np.roll(shape, shift, (0, 1)) for shift in shifts), key=lambda hole: (hole & mask).sum())
    return np.where((moved & ~mask)[..., None], other, image)


def test_leaky_pictures_render_with_masks_that_fit(name):
    ds = open_dataset(name, image_size=48, n_patients=6, leaky=True)
    assert set(ds.splits) <= {"train", "val", "test"} and np.asarray(ds.images).shape[1:] == (48, 48, 3)
    assert all(len(set(ds.labels[ds.groups == group])) == 1 for group in ds.groups)
    assert all(ds.mask(i).any() == (not empty(name, ds.labels[i])) for i in range(len(ds)))
