import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvitlib.data import HALF, IMAGENET, Preprocessing, normalise
from medvitlib.errors import DataError


def reference(batch: torch.Tensor, mean, std) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    return (batch.double() / 255 - mean) / std


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.sampled_from([HALF, IMAGENET])
)
def test_normalise_equals_the_formula(b, c, h, w, constants):
    batch = torch.randint(0, 256, (b, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(b + h))
    out = normalise(batch, Preprocessing((h, w), *constants))
    assert out.shape == (b, 3, h, w) and out.dtype == torch.float32
    torch.testing.assert_close(out.double(), reference(batch, *constants), atol=1e-6, rtol=0)


def test_a_one_channel_model_gets_one_channel():
    batch = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    out = normalise(batch, Preprocessing((4, 4), (0.5,), (0.5,), channels=1))
    torch.testing.assert_close(out.double(), reference(batch, (0.5,), (0.5,)), atol=1e-6, rtol=0)


def test_grey_with_equal_constants_is_a_view_of_one_channel():
    out = normalise(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), Preprocessing((8, 8), *HALF))
    assert out.stride()[1] == 0


def test_other_float_types_are_rounded_once():
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    out = normalise(batch, Preprocessing((16, 16), *HALF), dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), reference(batch, *HALF).expand(1, 3, 16, 16), atol=2**-9 + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (torch.zeros(1, 3, 8, 8), "uint8"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), "2 channel"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "image_size=\\(8, 8\\)"),
    ],
)
def test_what_cannot_be_normalised_is_refused(batch, says):
    with pytest.raises(DataError, match=says):
        normalise(batch, Preprocessing((8, 8), *IMAGENET))


def test_preprocessing_survives_json_and_refuses_nonsense():
    before = Preprocessing((224, 196), *IMAGENET)
    assert Preprocessing(**json.loads(json.dumps(dataclasses.asdict(before)))) == before
    with pytest.raises(DataError, match="1 channel"):
        Preprocessing((8, 8), *HALF, channels=1)
