"""A test set cut in two: what is chosen, what is reported, and what the cut has to do with it."""

import numpy as np
import pytest

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.choosing import accuracy_over_cuts, by_group, choice_table, choose_epoch, cut


@pytest.fixture
def photographs():
    """Four classes, 60 images each, of 20, 20, 16 and 4 photographs: labels and groups."""
    labels = np.repeat(np.arange(4), 60)
    groups = np.concatenate([np.arange(60) % n + 100 * k for k, n in enumerate((20, 20, 16, 4))])
    return labels, groups.astype(str)


@pytest.mark.parametrize("by", ["images", "groups"])
def test_a_cut_has_its_share_of_every_class(photographs, by):
    labels, groups = photographs
    units = groups if by == "groups" else np.arange(len(labels))
    for seed in range(20):
        part = cut(labels, groups, 0.3, by, seed)
        for label in range(4):
            inside = len(np.unique(units[part & (labels == label)]))
            assert inside == max(1, round(0.3 * len(np.unique(units[labels == label]))))
        assert bool(set(groups[part]) & set(groups[~part])) == (by == "images")
    assert not np.array_equal(cut(labels, groups, 0.3, by, 0), cut(labels, groups, 0.3, by, 1))


def test_a_photograph_with_two_classes_stays_whole():
    labels, groups = np.tile([0, 1], 20), np.repeat(np.arange(10), 4).astype(str)
    labels[:8] = 0
    part = cut(labels, groups, 0.5)
    assert not set(groups[part]) & set(groups[~part])
    assert 0 < part.sum() < 40


def test_a_class_with_a_single_photograph_stays_on_the_other_side():
    labels, groups = np.repeat([0, 1], [2, 8]), np.array(list("aabbccddee"))
    assert not any(cut(labels, groups, 0.5, seed=seed)[:2].any() for seed in range(10))


def test_the_best_epoch_on_one_part_is_reported_on_the_other():
    labels, groups = np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array(list("aabbccdd"))
    predicted = np.array([[0, 0, 1, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1]])
    found = choose_epoch(labels, predicted, np.arange(8) < 4, groups)
    assert (found.epoch, found.chosen, found.shared) == (2, 1.0, 0)  # the first of two that are as good
    assert found.by_images.value == found.by_groups.value == 0.75
    assert (found.by_images.n_images, found.by_images.n_groups, found.by_groups.n_groups) == (4, None, 2)
    assert found.by_groups.high - found.by_groups.low > found.by_images.high - found.by_images.low
    assert choose_epoch(labels, predicted, np.arange(8) % 2 == 0, groups).shared == 4
    row = choice_table({"first half": found}).loc["first half"].to_dict()
    assert row["interval: groups"] == found.by_groups.interval() != row.pop("interval: files")
    assert list(row.values())[:5] == [2, 0, 4, 2, "0.750"]


def test_cuts_by_image_agree_and_cuts_by_photograph_do_not(photographs):
    """Each photograph is right or wrong as a whole."""
    labels, groups = photographs
    rng = np.random.default_rng(0)
    right = rng.random((1, 60)) < 0.8
    predicted = np.where(right[:, np.unique(groups, return_inverse=True)[1]], labels, (labels + 1) % 4)
    spread = {by: accuracy_over_cuts(labels, predicted, groups, by, cuts=60).std() for by in ("images", "groups")}
    assert spread["groups"] > 2 * spread["images"]


def test_photographs_are_listed_the_worst_first():
    table = by_group([0, 0, 1, 1, 1], [0, 1, 0, 0, 0], np.array(list("aabbc")), ["x", "y"])
    assert table.values.tolist() == [["b", "y", 2, 0, 0.0], ["c", "y", 1, 0, 0.0], ["a", "x", 2, 1, 0.5]]


def test_what_cannot_be_is_said(photographs):
    labels, groups = photographs
    with pytest.raises(EvaluationError, match="expected one of images, groups"):
        cut(labels, groups, by="patients")
    with pytest.raises(EvaluationError, match="share"):
        cut(labels, groups, 1.5)
    with pytest.raises(EvaluationError, match="no class has 2 or more groups"):
        cut(np.array([0, 0, 1, 1]), np.array(list("aabb")))
    with pytest.raises(EvaluationError, match=r"expected \(E, N\)"):
        choose_epoch(labels, labels, labels == 0, groups)
    with pytest.raises(EvaluationError, match="images in both parts"):
        choose_epoch(labels, labels[None], labels >= 0, groups)
