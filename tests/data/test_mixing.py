import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup

from medvitlib.data import mix, mixing
from medvitlib.errors import DataError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_class_each(b, h=40, w=32):
    """Image i is i everywhere and of class i, so that both the partner and its share can be read off."""
    return torch.arange(b).float().view(-1, 1, 1, 1).expand(b, 3, h, w).clone(), torch.arange(b)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_cutmix_labels_are_the_share_of_pixels(b, h, w, seed):
    images, labels = one_class_each(b, h, w)
    mixed, soft = mix(images, labels, num_classes=b + 1, mixup=0, cutmix=1, generator=seeded(seed))
    share = torch.stack([(mixed[:, 0] == k).double().mean((1, 2)) for k in range(b + 1)], 1)
    torch.testing.assert_close(soft.double(), share, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**32))
def test_mixup_blends_images_as_it_blends_labels(b, seed):
    images, labels = one_class_each(b)
    mixed, soft = mix(images, labels, num_classes=b, mixup=0.4, cutmix=0, generator=seeded(seed))
    value = (soft * torch.arange(b)).sum(1)
    torch.testing.assert_close(mixed, value.view(-1, 1, 1, 1).expand_as(mixed), atol=1e-5, rtol=0)
    assert (soft >= 0).all() and torch.allclose(soft.sum(1), torch.ones(b))


def test_each_image_has_a_draw_of_its_own():
    images, labels = one_class_each(64)
    mixed, soft = mix(images, labels, num_classes=64, generator=seeded())
    assert len({round(float(row.max()), 5) for row in soft}) > 55
    boxed = torch.tensor([len(image.unique()) == 2 and bool((image == image.round()).all()) for image in mixed])
    blended = torch.tensor([len(image.unique()) == 1 for image in mixed])
    assert 15 < boxed.sum() < 50 and 10 < blended.sum() < 50
    corners = {tuple((image[0] != i).nonzero()[0].tolist()) for i, image in enumerate(mixed) if boxed[i]}
    assert len(corners) > boxed.sum() / 2


def test_shares_follow_the_beta_distribution():
    _, soft = mix(torch.zeros(20_000, 1, 1, 1), torch.zeros(20_000).long(), num_classes=1, generator=seeded())
    assert torch.allclose(soft, torch.ones(20_000, 1))
    b = 3_000
    for alpha in (0.2, 1.0):
        _, soft = mix(
            torch.zeros(b, 1, 1, 1), torch.arange(b), num_classes=b, mixup=alpha, cutmix=0, generator=seeded(1)
        )
        own = soft.diagonal()
        assert abs(own.mean() - 0.5) < 0.03 and abs(own.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


@pytest.mark.parametrize("box", [True, False])
def test_equals_timm_given_the_same_draws(box, monkeypatch):
    """timm mixes an image with its mirror in the batch: with two images that is ours too."""
    images, labels = torch.randn(2, 3, 20, 30), torch.tensor([2, 0])
    share, top, bottom, left, right = np.array([0.3, 0.8]), *(np.array(x) for x in ([2, 5], [9, 20], [0, 4], [7, 9]))
    sides = iter([(top, bottom), (left, right)])

    class Drawn:
        random = staticmethod(lambda n: np.full(n, 0.0))  # below the coin's half: a box, where there are boxes
        beta = staticmethod(lambda a, b, n: share)
        integers = staticmethod(lambda *_: 1)

    monkeypatch.setattr(mixing.np.random, "default_rng", lambda seed: Drawn)
    monkeypatch.setattr(mixing, "_side", lambda *_: next(sides))
    mixed, soft = mix(images, labels, num_classes=3, mixup=0.0 if box else 1.0, cutmix=1.0 if box else 0.0)

    theirs = timm_mixup.Mixup(1.0, 1.0, mode="elem", label_smoothing=0.0, num_classes=3)
    boxes = iter(zip(top, bottom, left, right, strict=True))
    monkeypatch.setattr(theirs, "_params_per_elem", lambda n: (share.astype(np.float32), np.full(n, box)))
    monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *_, **__: next(boxes))
    expected, expected_soft = theirs(images.clone(), labels)
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(soft, expected_soft, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_boxes_are_timms(length, share, seed):
    ours = mixing._side(length, np.full(1, share), np.random.default_rng(seed))
    centre = np.random.default_rng(seed).integers(0, length, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_mixup.np.random, "randint", lambda *_, **__: centre)
        low, high, _, _ = timm_mixup.rand_bbox((length, length), share)
    assert (ours[0] == low).all() and (ours[1] == high).all()


def test_the_generator_decides_and_nothing_else():
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    before, state, numpys = images.clone(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    one = mix(images, labels, num_classes=6, generator=seeded(3))
    again = mix(images, labels, num_classes=6, generator=seeded(3))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], mix(images, labels, num_classes=6, generator=seeded(4))[0])
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())
    assert numpys == np.random.get_state()[1].tolist()
    grey = images[:, :1].expand(-1, 3, -1, -1)  # what normalise returns for grey images is such a view
    assert torch.equal(mix(grey, labels, num_classes=6, generator=seeded(3))[0], one[0].expand(-1, 3, -1, -1))


def test_half_precision_keeps_its_type_and_its_box():
    images, labels = one_class_each(8)
    mixed, soft = mix(images.bfloat16(), labels, num_classes=8, mixup=0, generator=seeded())
    exact, _ = mix(images, labels, num_classes=8, mixup=0, generator=seeded())
    assert mixed.dtype == torch.bfloat16 and soft.dtype == torch.float32 and torch.equal(mixed.float(), exact)


@pytest.mark.parametrize(("b", "options"), [(1, {}), (4, {"mixup": 0, "cutmix": 0}), (0, {})])
def test_nothing_to_mix_gives_the_images_and_plain_labels(b, options):
    images, labels = one_class_each(b)
    mixed, soft = mix(images, labels, num_classes=5, **options)
    assert torch.equal(mixed, images) and torch.equal(soft, torch.eye(5)[:b])


@pytest.mark.parametrize(
    ("images", "labels", "options", "says"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), {}, "after normalise"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), {}, "one int64 label each"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), {}, "one int64 label each"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]), {}, "num_classes=2"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([-1, 0]), {}, "num_classes=2"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), {"cutmix": -1}, "cutmix=-1"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), {"mixup": float("inf")}, "mixup=inf"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), {"mixup": float("nan")}, "mixup=nan"),
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), {}, r"expected floating images \(B, C, H, W\)"),
    ],
)
def test_what_cannot_be_mixed_is_refused(images, labels, options, says):
    with pytest.raises(DataError, match=says):
        mix(images, labels, num_classes=2, **options)
