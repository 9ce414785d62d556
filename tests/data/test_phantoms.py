import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvitlib.data import PhantomOptions, open_dataset
from medvitlib.data.phantoms import picture
from medvitlib.errors import DataError

SIZE = (64, 64)


@pytest.fixture(scope="module")
def ds():
    return open_dataset("phantom/cxr", image_size=64)


@pytest.fixture(scope="module")
def masks(ds):
    return np.array([ds.mask(i) for i in range(len(ds))])


def test_patients_have_one_class_and_one_to_four_images(ds):
    groups, first, counts = np.unique(ds.groups, return_index=True, return_counts=True)
    assert len(groups) == 150 and ds.groups_known and set(counts) == {1, 2, 3, 4}
    assert (ds.labels == ds.labels[first][np.searchsorted(groups, ds.groups)]).all()
    assert ds.labels[first].sum() == 75
    assert (ds.classes, ds.positive, ds.channels) == (["normal", "pneumonia"], "pneumonia", 1)
    assert any("rendered" in note for note in ds.notes)


def test_an_image_does_not_depend_on_what_was_rendered_before(ds):
    for i in (len(ds) - 1, 3, 200, 3):
        image, _ = picture("phantom/cxr", ds.ids[i], SIZE, PhantomOptions())
        assert (image == ds.images[i]).all()
    few = open_dataset("phantom/cxr", image_size=64, n_patients=10)
    assert (np.asarray(few.images) == ds.images[: len(few)]).all() and (few.labels == ds.labels[: len(few)]).all()


def test_images_differ_between_patients_films_and_seeds(ds):
    assert len({image.tobytes() for image in np.asarray(ds.images)}) == len(ds) == len(set(ds.hashes))
    other = open_dataset("phantom/cxr", image_size=64, n_patients=10, seed=1)
    assert not set(other.hashes) & set(ds.hashes)
    assert (other.images[0] != ds.images[0]).any()


def test_evidence_exists_in_the_ill_only(ds, masks):
    assert masks.shape == (len(ds), 64, 64) and masks.dtype == bool
    assert (masks.any(axis=(1, 2)) == (ds.labels == 1)).all()
    assert 0.02 < masks[ds.labels == 1].mean() < 0.1


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (90, 130)])
def test_taking_the_evidence_away_changes_nothing_outside_it(ds, size):
    for i in np.flatnonzero(ds.labels)[:12]:
        image, mask = picture("phantom/cxr", ds.ids[i], size, PhantomOptions())
        without, none = picture("phantom/cxr", ds.ids[i], size, PhantomOptions(), evidence=False)
        assert (image[~mask] == without[~mask]).all() and not none.any()
        assert image[mask].mean() > without[mask].mean() + 5


def test_evidence_lies_beside_the_centre(masks):
    y, x = np.mgrid[0:64, 0:64] / 63 - 0.5
    off = [np.hypot(y[mask], x[mask]).mean() for mask in masks if mask.any()]
    assert np.mean(off) > 0.2


def test_difficulty_makes_evidence_fainter_and_smaller():
    def contrast_and_area(difficulty):
        options, contrast, area = PhantomOptions(difficulty=difficulty), [], []
        for patient in range(16):
            image, mask = picture("phantom/cxr", f"patient{patient:04d}/0", SIZE, options)
            without, _ = picture("phantom/cxr", f"patient{patient:04d}/0", SIZE, options, evidence=False)
            if mask.any():
                contrast.append((image.astype(float) - without)[mask].mean())
                area.append(mask.mean())
        return np.mean(contrast), np.mean(area)

    easy, default, hard = (contrast_and_area(d) for d in (0, 0.3, 1))
    assert easy > default > hard


def auroc(features, ds) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(model, features, ds.labels, groups=ds.groups, cv=folds, method="predict_proba")[:, 1]
    return roc_auc_score(ds.labels, p)


@pytest.mark.parametrize("seed", [0, 1])
def test_shortcuts_do_not_work(seed):
    ds = open_dataset("phantom/cxr", image_size=64, seed=seed)
    images = np.asarray(ds.images)[..., 0].astype(float)
    blocks = images.reshape(len(ds), 16, 4, 16, 4).mean((2, 4))  # (N, 16, 16)
    inside = np.zeros((16, 16), bool)
    inside[2:-2, 2:-2] = True
    shortcuts = {
        "brightness": images.mean((1, 2))[:, None],
        "contrast": images.std((1, 2))[:, None],
        "border": blocks[:, ~inside],
        "top and bottom": blocks[:, [0, 1, -1]].reshape(len(ds), -1),
    }
    scores = {name: auroc(features, ds) for name, features in shortcuts.items()}
    assert all(0.4 < score < 0.6 for score in scores.values()), scores


def test_every_option_and_the_size_make_other_images():
    def images(size=32, **options):
        return np.asarray(open_dataset("phantom/cxr", image_size=size, n_patients=4, **options).images)

    assert (images(seed=3)[0] != images()[0]).any()
    assert (images(difficulty=0.9) != images()).any()
    assert images(size=(32, 48)).shape[1:] == (32, 48, 1)


def test_rendering_is_fast_enough_for_a_first_run():
    start = time.process_time()
    for patient in range(40):
        picture("phantom/cxr", f"patient{patient:04d}/0", (224, 224), PhantomOptions(seed=5))
    assert time.process_time() - start < 4  # 10 ms an image; a loose bound, for slow machines


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("phantom/ct", {}, "phantom/cxr"),
        ("phantom/cxr", {"patients": 3}, "n_patients=150"),
        ("phantom/cxr", {"n_patients": 1}, "n_patients >= 2"),
        ("phantom/cxr", {"difficulty": 2}, "difficulty between"),
        ("phantom/cxr", {"positive": "ill"}, "expected one of"),
        ("phantom/cxr", {"groups": "kermany"}, "takes no groups"),
    ],
)
def test_bad_options_name_the_good_ones(name, options, says):
    with pytest.raises(DataError, match=says):
        open_dataset(name, **options)
