"""What is shown is chosen by the prediction, never by the map."""

import numpy as np
import pytest

from medvitlib.errors import ExplanationError
from medvitlib.explain.examples import right_and_wrong


def test_the_surest_of_each_kind_class_by_class():
    y = np.array([0, 0, 0, 1, 1])
    p = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    assert right_and_wrong(y, p, ["x", "y"]) == [
        (1, "x\nright, 0.90"),
        (2, "x\ncalled y, 0.80"),
        (3, "y\nright, 0.70"),
    ]
    assert [i for i, _ in right_and_wrong(y, p, ["x", "y"], each=2)] == [1, 0, 2, 3, 4]
    with pytest.raises(ExplanationError, match=r"expected \(N, K\)"):
        right_and_wrong(y, p[:3], ["x", "y"])
