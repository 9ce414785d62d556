from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest

from medvitlib.data import near, open_dataset, split
from medvitlib.data.near import Pairs, near_duplicates, perceptual_hash
from medvitlib.errors import DataError


def texture(seed: int, size: int = 260) -> np.ndarray:
    """Blobs, edges and grain that no other seed has."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), 150, np.float32)
    for _ in range(60):
        centre, axes = rng.integers(0, size, 2).tolist(), rng.integers(4, 26, 2).tolist()
        colour = rng.uniform(30, 230, 3).tolist()
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, int(rng.choice([-1, 2])))
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    size = image.shape[0]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((size / 2, size / 2), degrees, 1.0), (size, size))


ALTERED = {
    "rotated by 17 degrees": lambda image: turned(image, 17),
    "mirrored": lambda image: image[:, ::-1],
    "turned round and mirrored": lambda image: image[::-1],
    "rotated by 90 degrees": lambda image: np.rot90(image),
    "cropped": lambda image: image[20:240, 25:245],
    "brighter": lambda image: np.clip(image * 1.12 + 6, 0, 255).astype(np.uint8),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty pictures, and one altered copy of each of the first six."""
    folder = tmp_path_factory.mktemp("near")
    for seed in range(20):
        path = folder / "ab"[seed % 2] / f"{seed:02d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), texture(seed))
    for seed, alter in enumerate(ALTERED.values()):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 70]
        cv2.imwrite(str(folder / "b" / f"copy_{seed:02d}.jpg"), np.ascontiguousarray(alter(texture(seed))), quality)
    cv2.imwrite(str(folder / "a" / "same_10.bmp"), texture(10))
    (folder / "a" / "twin_12.png").write_bytes((folder / "a" / "12.png").read_bytes())
    return folder


def test_altered_copies_are_found_and_nothing_else(folder):
    ds = open_dataset(folder, image_size=224)
    pairs = near_duplicates(ds)
    found = {
        tuple(sorted(name[2:].split(".")[0][-2:] for name in (ds.ids[i], ds.ids[j]))): how
        for i, j, how in zip(pairs.i, pairs.j, pairs.how, strict=True)
    }
    expected = {(f"{seed:02d}",) * 2: "altered copy" for seed in range(6)}
    expected |= {("10", "10"): "identical pixels", ("12", "12"): "identical files"}
    assert found == expected
    assert (pairs.points[pairs.how == "altered copy"] >= near.MIN_POINTS).all()
    clusters = pairs.clusters(len(ds))
    assert clusters.max() + 1 == 20 and (np.bincount(clusters) <= 2).all()


def test_copies_in_the_other_class_do_not_hide_themselves(tmp_path):
    """In a small folder they are a large share of the pairs that tell what strangers agree on."""
    for seed in range(10):
        path = tmp_path / "few" / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), texture(seed))
        if seed < 3:
            copy = tmp_path / "few" / "ba"[seed % 2] / f"{seed}.jpg"
            copy.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(copy), turned(texture(seed), 17))
    ds = open_dataset(tmp_path / "few", image_size=224)
    pairs = near_duplicates(ds)
    assert len(pairs) == 3 and (ds.labels[pairs.i] != ds.labels[pairs.j]).all()


def test_a_set_of_one_picture_saved_again_and_again_is_one_cluster(tmp_path):
    for k in range(24):
        path = tmp_path / "one" / "ab"[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), texture(1), [cv2.IMWRITE_JPEG_QUALITY, 60 + k])
    clusters = near_duplicates(open_dataset(tmp_path / "one", image_size=224)).clusters(24)
    assert np.bincount(clusters).max() >= 20


def test_asking_again_reads_what_was_found(folder, own_cache, monkeypatch):
    ds = open_dataset(folder, image_size=112)
    first = near_duplicates(ds)
    monkeypatch.setattr(near, "_find", lambda ds: pytest.fail("looked for again"))
    again = near_duplicates(ds)
    assert all((a == b).all() for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    monkeypatch.undo()
    (stored,) = (own_cache / "near").glob("*.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    assert len(near_duplicates(ds)) == len(first)


def test_pictures_without_detail_are_no_copies_of_each_other(tmp_path, write_classes):
    for k, level in enumerate((0, 3, 120, 128, 255)):
        path = tmp_path / "flat" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((30 + k, 50, 3), level, np.uint8))
    ds = open_dataset(tmp_path / "flat", image_size=(64, 96))
    assert len(near_duplicates(ds)) == 0
    tiny = open_dataset(write_classes(tmp_path / "tiny", {"a": 2, "b": 2}, size=(3, 2)), image_size=8)
    assert len(near_duplicates(tiny)) == 0
    assert len(near_duplicates(ds.subset([0]))) == 0


def test_the_perceptual_hash_survives_exposure_and_scale():
    grey = cv2.cvtColor(texture(3), cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (90, 90), interpolation=cv2.INTER_AREA)
    brighter = np.clip(grey * 0.8 + 30, 0, 255).astype(np.uint8)
    other = cv2.cvtColor(texture(4), cv2.COLOR_BGR2GRAY)
    bits = perceptual_hash(grey)
    assert (bits != perceptual_hash(small)).sum() <= 4
    assert (bits != perceptual_hash(brighter)).sum() <= 4
    assert (bits != perceptual_hash(other)).sum() >= 16


def test_pairs_of_a_rendered_leak_are_the_copies_that_were_put_in():
    ds = open_dataset("phantom/cxr", image_size=224, n_patients=60, leaky=True)
    pairs = near_duplicates(ds)
    last = {group: ident for group, ident in zip(ds.groups, ds.ids, strict=True)}
    truth = {(f"{group}/0", ident) for group, ident in last.items() if not ident.endswith("/0")}
    found = set(zip(ds.ids[pairs.i], ds.ids[pairs.j], strict=True))
    assert len(truth) > 30 and len(found & truth) >= 0.95 * len(truth)
    assert (ds.groups[pairs.i] == ds.groups[pairs.j]).mean() >= 0.95  # other films of one patient are fair finds


def test_a_split_by_clusters_keeps_copies_together(folder):
    ds = open_dataset(folder, image_size=224)
    parts = split(ds, val=0.25, test=0.25, seed=1, by="clusters")
    where = {name: part for part in ("train", "val", "test") for name in getattr(parts, part).ids}
    pairs = near_duplicates(ds)
    assert all(where[ds.ids[i]] == where[ds.ids[j]] for i, j in zip(pairs.i, pairs.j, strict=True))
    assert parts.train.groups_known and any("lower bound" in note for note in parts.notes)
    assert "clusters" in " ".join(parts.notes)


def test_a_split_by_image_says_what_it_tears_apart():
    ds = open_dataset("phantom/cxr", image_size=32)
    parts = split(ds, by="images")
    torn = set(parts.train.groups) & set(parts.test.groups)
    assert torn and any("on purpose" in note for note in parts.notes)
    with pytest.raises(DataError, match="by='patients': expected one of groups, clusters, images"):
        split(ds, by="patients")


def test_pairs_can_be_chosen_from():
    pairs = Pairs(np.array([0, 1]), np.array([1, 2]), np.array(["altered copy", "same scene"]), np.array([40, 20]))
    assert pairs.clusters(4).tolist() == [0, 0, 0, 1]
    assert pairs.take(pairs.how == "altered copy").clusters(4).tolist() == [0, 0, 1, 2]


def agreement(clusters: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Precision and recall of the pairs that clusters put together."""

    def within(keys) -> int:
        return sum(n * (n - 1) // 2 for n in Counter(keys).values())

    both = within(zip(clusters.tolist(), truth.tolist(), strict=True))
    return both / within(clusters.tolist()), both / within(truth.tolist())


@pytest.mark.real_data
def test_copies_recover_the_photographs_of_real_blood_cells(real_data, tmp_path):
    """Every third file; some photographs show a cell that another one shows too, which are found as the same scene."""
    table = pd.read_csv(real_data / "manifest.csv")
    table = table[(table["set"] == "blood_cells") & (table["split"] == "TRAIN")].iloc[::3]
    table["path"] = [str(real_data / path) for path in table["path"]]
    manifest = tmp_path / "third.csv"
    table[["path", "class", "group"]].to_csv(manifest, index=False)
    ds = open_dataset(manifest, image_size=224)
    pairs = near_duplicates(ds)
    copies = pairs.take(pairs.how != "same scene")
    precision, recall = agreement(copies.clusters(len(ds)), ds.groups)
    assert precision >= 0.9 and recall >= 0.5, (precision, recall)


@pytest.mark.real_data
def test_radiographs_of_two_patients_are_no_copies(real_data):
    ds = open_dataset(real_data / "chest_xray", image_size=224)
    ds = ds.subset(np.arange(0, len(ds), 4))
    pairs = near_duplicates(ds)
    certain = np.isin(pairs.how, near.CERTAIN)
    assert (ds.groups[pairs.i] == ds.groups[pairs.j])[certain].all()
