"""What cannot be scored is refused with a sentence that says what to do."""

import numpy as np
import pytest

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import choose_threshold_by_min_recall, score
from medvitlib.evaluation.inputs import check, percent

TWO = ["NORMAL", "PNEUMONIA"]
Y = np.array([0, 1, 1, 0])
P = np.array([0.2, 0.9, 0.6, 0.4])


def test_the_positive_class_has_no_default():
    with pytest.raises(EvaluationError, match="'NORMAL', 'PNEUMONIA'"):
        score(Y, P, classes=TWO)


@pytest.mark.parametrize("positive", [1, "pneumonia", "1"])
def test_the_positive_class_is_a_name_in_the_list(positive):
    with pytest.raises(EvaluationError, match="not a class name"):
        score(Y, P, classes=TWO, positive=positive)


def test_a_positive_class_among_many_is_refused():
    with pytest.raises(EvaluationError, match="3 classes"):
        check(Y, np.full((4, 3), 1 / 3), ["a", "b", "c"], "a")


@pytest.mark.parametrize("positive", TWO)
def test_one_column_is_the_positive_class_wherever_it_stands(positive):
    data = check(Y, P, TWO, positive)
    assert data.p_positive.tolist() == P.tolist()
    assert data.is_positive.tolist() == [TWO[k] == positive for k in Y]
    assert np.allclose(data.p.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        (["NORMAL", "PNEUMONIA"], P[:2], "classes.index"),
        (np.array([0.0, 1.0]), P[:2], "astype"),
        (np.array([[0], [1]]), P[:2], "ravel"),
        (np.array([], int), P[:0], "N > 0"),
        (np.array([0, 2]), P[:2], "0 to 1"),
        (np.array([-1, 1]), P[:2], "from -1"),
        (Y[:2], P[:3], "2 labels but 3 rows"),
        (Y[:2], np.array([0.1, np.nan]), "1 NaN"),
        (Y[:2], np.array([-2.0, 3.0]), "softmax"),
        (Y[:2], np.array([[0.5, 0.6], [0.5, 0.5]]), "row 0 sums to 1.1"),
        (Y[:2], np.full((2, 3), 1 / 3), r"\(2, 2\)"),
        (Y[:2], np.array(["0.1", "0.2"]), "floating-point"),
    ],
)
def test_arrays_that_do_not_fit_are_named(y, p, message):
    with pytest.raises(EvaluationError, match=message):
        check(y, p, TWO, "PNEUMONIA")


@pytest.mark.parametrize("classes", ["NORMAL", ["a"], ["a", "a"]])
def test_classes_are_at_least_two_different_names(classes):
    with pytest.raises(EvaluationError, match="two different names"):
        check(Y, P, classes, "a")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], r"\(2,\); expected \(4,\)"),
        (["a", "b", "", "c"], "1 of 4 images have no group"),
        ([1.0, 2.0, np.nan, np.nan], "2 of 4"),
        (["a", None, "b", "c"], "1 of 4"),
    ],
)
def test_every_image_has_a_group_or_none_has(groups, message):
    with pytest.raises(EvaluationError, match=message):
        check(Y, P, TWO, "PNEUMONIA", np.array(groups))


def test_groups_may_be_text_or_numbers():
    assert check(Y, P, TWO, "PNEUMONIA", np.array([7, 9, 7, 9])).groups.tolist() == [0, 1, 0, 1]
    assert check(Y, P, TWO, "PNEUMONIA", np.array(["b", "a", "b", "a"])).groups.tolist() == [1, 0, 1, 0]


def test_a_half_precision_softmax_passes():
    p = np.array([[0.333, 0.6665], [0.1, 0.9]], np.float16)
    assert check(Y[:2], p, TWO, "NORMAL").p.dtype == np.float64


@pytest.mark.parametrize("threshold", [np.nan, np.inf])
def test_a_threshold_is_a_number(threshold):
    with pytest.raises(EvaluationError, match="expected a probability"):
        score(Y, P, classes=TWO, positive="NORMAL", threshold=threshold)


def test_many_classes_take_no_threshold():
    with pytest.raises(EvaluationError, match="it is for two"):
        score(Y, np.full((4, 3), 1 / 3), classes=["a", "b", "c"], threshold=0.5)


def test_both_columns_are_not_a_score():
    with pytest.raises(EvaluationError, match="one column"):
        choose_threshold_by_min_recall(Y, np.stack([1 - P, P], axis=1), 0.9)


def test_tensors_of_training_are_answered():
    torch = pytest.importorskip("torch")
    p = torch.full((4,), 0.5)
    for tensor in (p.bfloat16(), p.clone().requires_grad_()):
        with pytest.raises(EvaluationError, match=r"From a tensor: \.detach"):
            score(np.arange(4) % 2, tensor, classes=["a", "b"], positive="b")


@pytest.mark.parametrize(("share", "text"), [(0.95, "95 %"), (0.9999, "99.99 %"), (0.975, "97.5 %")])
def test_a_share_is_never_rounded_up_to_certainty(share, text):
    assert percent(share) == text
