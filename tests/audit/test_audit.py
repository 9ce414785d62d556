import json
import os
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from medvitlib.audit import agreement, audit, measures
from medvitlib.audit.leaks import exposed, overlap, pair_table, suspects
from medvitlib.cli import main
from medvitlib.data import near, open_dataset
from medvitlib.errors import DataError
from medvitlib.evaluation import Estimate


@pytest.fixture(scope="module")
def leaky():
    ds = open_dataset("phantom/cxr", image_size=224, n_patients=60, leaky=True, difficulty=0.6)
    return audit(ds, weights=None, n_boot=200)


@pytest.fixture(scope="module")
def clean():
    return audit(open_dataset("phantom/cxr", image_size=224, n_patients=60), weights=None, n_boot=200)


def texts(found) -> str:
    return "\n".join(finding.text for finding in found.findings)


def test_the_leaks_that_were_put_in_come_first(leaky):
    ds = leaky.dataset
    test = ds.splits == "test"
    exposed_images = np.isin(ds.groups[test], ds.groups[ds.splits == "train"]).sum()
    first = [finding.text for finding in leaky.findings[:2]]
    assert any("groups in train and in" in text for text in first)
    assert any(text.startswith("Border ring alone") for text in first)
    assert f"{exposed_images} test/train" in leaky.table().found["images of groups in two parts"]
    weights = [finding.weight for finding in leaky.findings]
    assert weights == sorted(weights, reverse=True) and weights[0] <= 1


def test_the_shortcut_that_was_put_in_is_found_and_a_clean_set_has_none(leaky, clean):
    assert leaky.baselines["border ring"].low > 0.6
    assert "Border ring alone reaches AUROC" in texts(leaky)
    for name in ("mean colour", "border ring"):
        assert clean.baselines[name].low < 0.55 and clean.baselines[name].high > 0.45
    assert not {"Mean colour alone", "Border ring alone"} & {finding.text[:17] for finding in clean.findings}
    assert clean.baselines["image and file size"] == "the images are not files"


def test_copies_across_parts_are_named_first_in_the_pairs(leaky):
    pairs = leaky.pairs
    assert len(pairs) > 20 and "splits" in pairs.across.iloc[0]
    assert (pairs.group_a == pairs.group_b).mean() > 0.9
    crossing = pairs.across.str.contains("splits")
    assert crossing.sum() == crossing.to_numpy()[: crossing.sum()].sum()  # all of them before any other


def test_units_are_patients_and_whatever_near_duplicates_join(leaky, clean):
    for found in (leaky, clean):
        groups = np.unique(found.dataset.groups, return_inverse=True)[1]
        assert all(len(np.unique(found.units[groups == g])) == 1 for g in np.unique(groups))
        assert found.units.max() + 1 <= len(np.unique(groups))
        assert found.counts["images"].sum() == len(found.dataset)


def test_everything_is_written_and_reads_as_json(leaky, tmp_path):
    folder = leaky.save(tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert names == {"audit.json", "audit.txt", "contact_sheet.png", "shortcuts.png", "suspects.png"}
    saved = json.loads((folder / "audit.json").read_text())
    assert saved["findings"][0]["text"] == leaky.findings[0].text
    assert len(saved["pairs"]) == len(leaky.pairs) and saved["baselines"]["border ring"]["value"] > 0.6
    for name in names - {"audit.json", "audit.txt"}:
        assert cv2.imread(str(folder / name)).std() > 10
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        leaky.save(tmp_path / "file" / "below")


def test_a_folder_with_every_fault_is_described(tmp_path, own_roots):
    """Sizes tell the class, two files are the same under two patients, one picture has two labels, one is broken."""
    rng = np.random.default_rng(0)
    rows = ["path,group"]
    for k in range(48):
        side = 60 if k % 2 else 80
        path = tmp_path / "set" / ("ill" if k % 2 else "well") / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs = cv2.resize(
            rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(path), blobs)
        rows.append(f"{path.parent.name}/{path.name},p{k // 3}")
    well, ill = tmp_path / "set" / "well", tmp_path / "set" / "ill"
    (well / "twin.png").write_bytes((well / "00.png").read_bytes())
    cv2.imwrite(str(ill / "other.bmp"), cv2.imread(str(well / "02.png")))
    (ill / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows += ["well/twin.png,p40", "ill/other.bmp,p41"]
    (tmp_path / "set" / "groups.csv").write_text("\n".join(rows))
    with pytest.warns(UserWarning, match="left out"):
        ds = open_dataset(tmp_path / "set", image_size=224, positive="ill")
    found = audit(ds, weights=None, n_boot=200)
    says = texts(found)
    assert found.baselines["image and file size"].value > 0.95 and "Image and file size alone reaches" in says
    assert "Two labels for" in says
    assert "2 pairs of copies under two different groups" in says
    assert "Left out: 1 file," in says and "broken.png" in says
    assert found.files.loc["ill", "height"] == "60 to 80" and found.files.loc["well", "modes"] == "25 RGB"
    assert {"identical files", "identical pixels"} <= set(found.pairs.how)


def test_without_patients_the_danger_of_a_random_split_is_a_number(leaky):
    ds = replace(leaky.dataset, groups=leaky.dataset.ids, groups_known=False, splits=np.full(len(leaky.dataset), ""))
    found = audit(ds, weights=None, n_boot=200)
    share = exposed(found.clusters)
    assert 0.1 < share < 0.9 and f"{share:.1%} of the test images beside one of its own cluster" in texts(found)
    assert "split(ds, by='clusters')" in texts(found)
    assert found.table().found["groups"] == "not known"


def test_exposure_is_what_a_random_split_does():
    keys = np.repeat(np.arange(200), [1] * 100 + [3] * 100)
    rng, hits = np.random.default_rng(0), []
    for _ in range(300):
        train = rng.random(len(keys)) < 0.8
        hits.append(np.isin(keys[~train], keys[train]).mean())
    assert exposed(keys) == pytest.approx(np.mean(hits), abs=0.01)
    assert exposed(np.arange(5)) == 0


def test_agreement_counts_pairs():
    clusters, groups = np.array([0, 0, 0, 1, 1, 2]), np.array(list("aabbcc"))
    assert agreement(clusters, groups) == (1 / 4, 1 / 3)
    assert np.isnan(agreement(np.arange(3), np.arange(3))).all()


def test_overlap_counts_images_of_the_other_part():
    splits = np.array(["train", "train", "test", "test", "test", "val"])
    keys = np.array(["a", "b", "a", "a", "c", "c"])
    rows = {(row.one, row.other): (row.shared, row.images, row.of) for row in overlap(splits, keys).itertuples()}
    assert rows == {("train", "val"): (0, 0, 1), ("train", "test"): (1, 2, 3), ("val", "test"): (1, 1, 3)}


def test_flipped_labels_are_the_first_suspects(clean):
    ds = clean.dataset
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(ds), 6, replace=False)
    labels = ds.labels.copy()
    labels[flipped] = 1 - labels[flipped]
    sure = np.where(ds.labels[:, None] == np.arange(2), 0.95, 0.05)
    table = suspects(replace(ds, labels=labels), sure)
    assert set(table.i) == set(flipped) and (table.label != table.looks_like).all()
    assert (table.p_other == 0.95).all()


def test_out_of_fold_never_judges_a_unit_it_has_seen():
    """Features that name the unit and nothing else: remembered across folds by image, useless by unit."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 5)
    labels = rng.permutation(np.repeat([0, 1], 20))[units]
    x = np.eye(40)[units] + rng.normal(0, 0.01, (200, 40))

    def accuracy(keys):
        cut = measures.folds(labels, keys)
        return (measures.out_of_fold(x, labels, cut, strength=10.0).argmax(1) == labels).mean()

    assert accuracy(np.arange(200)) > 0.95 and accuracy(units) < 0.65
    assert measures.folds(labels, labels) is None and measures.out_of_fold(x, labels, None) is None


def test_two_classes_are_needed(tmp_path, write_classes):
    ds = open_dataset(write_classes(tmp_path / "set", {"a": 3, "b": 1}), image_size=32)
    with pytest.raises(DataError, match="nothing to compare"):
        audit(ds.subset(ds.labels == 0), weights=None)
    found = audit(ds, weights=None, n_boot=200)
    assert found.gap is None and found.difference is None and found.gap_table().empty
    assert "fewer than 5 independent units" in found.baselines["mean colour"]
    assert str(found)


def test_names_with_dollar_signs_are_written_as_they_are(tmp_path, write_classes):
    folder = write_classes(tmp_path / "set", {"a $x_{$ b": 6, "NA": 6})
    for k, path in enumerate(sorted(folder.glob("*/*"))):
        path.rename(path.with_name(f"$_{k}^${path.suffix}"))
    ds = open_dataset(folder, image_size=32)
    pair = near.Pairs(np.array([0]), np.array([7]), np.array(["same scene"]), np.array([20]))
    found = replace(audit(ds, weights=None, n_boot=100), pairs=pair_table(ds, pair))
    found = replace(found, suspects=suspects(ds, np.eye(2)[1 - ds.labels]))
    assert (found.save(tmp_path / "out") / "contact_sheet.png").exists()


def test_a_class_whose_files_are_all_broken_is_left_out_and_named(tmp_path, write_classes):
    folder = write_classes(tmp_path / "set", {"a": 6, "b": 6, "c": 6})
    for path in (folder / "b").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.warns(UserWarning, match="left out"):
        ds = open_dataset(folder, image_size=32, max_bad=0.5, positive="b")
    found = audit(ds, weights=None, n_boot=100)
    assert found.dataset.classes == ["a", "c"] and "Note: no image of b could be used." in str(found)
    assert isinstance(found.baselines["mean colour"], Estimate)


def test_a_file_that_vanished_since_the_set_was_opened_is_named(tmp_path, write_classes):
    ds = open_dataset(write_classes(tmp_path / "set", {"a": 4, "b": 4}), image_size=32)
    os.remove(ds.files[2])
    with pytest.raises(DataError, match=r"img_.*cannot be read any more.*Open the data set again"):
        audit(ds, weights=None)


def test_the_text_tells_sizes_modes_and_counts_of_each_class(tmp_path, write_classes):
    folder = write_classes(tmp_path / "set", {"a": 4, "b": 5}, size=(20, 30))
    says = str(audit(open_dataset(folder, image_size=32), weights=None, n_boot=100))
    assert "median_bytes" in says and "1.50 to 1.50" in says and "units" in says


def test_the_command_prints_findings_and_names_the_folder(tmp_path, capsys, write_classes):
    folder = write_classes(tmp_path / "set", {"a": 6, "b": 6}, colour=True)
    assert main(["audit", str(folder), "--no-network", "--size", "64", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "12 of 2 classes" in out and str(tmp_path / "out") in out
    assert os.listdir(tmp_path / "out")
    assert main(["audit", str(tmp_path / "nothing")]) == 1
    assert main(["audit", str(folder), "--leaky"]) == 1
    assert "options of rendered sets" in capsys.readouterr().err


def test_features_of_a_pretrained_network_tell_images_from_units(leaky, pretrained_weights, monkeypatch):
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    features, name = measures.embedding(leaky.dataset)
    assert features.shape == (len(leaky.dataset), 768) and "vit_small" in name
    again, _ = measures.embedding(leaky.dataset)
    assert (again == features).all()


def test_without_weights_the_reason_is_given(clean, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(tmp_path))
    assert clean.network == "thumbnails: no pretrained network was asked for"
    assert f"Features: {clean.network}." in str(clean)
    assert all(isinstance(clean.gap[name]["auroc"], Estimate) for name in ("by image", "by cluster", "by unit"))
    features, why = measures.embedding(clean.dataset, weights=str(tmp_path / "none.safetensors"))
    assert features is None and why.startswith("no pretrained weights: ")


@pytest.mark.real_data
def test_breast_images_in_two_parts_are_found(real_data):
    found = audit(open_dataset(real_data / "medmnist" / "breastmnist.npz", image_size=224), weights=None, n_boot=200)
    crossing = found.pairs[found.pairs.across.str.contains("splits")]
    exact = crossing[crossing.how.isin(["identical files", "identical pixels"])]
    assert {*exact.image_a, *exact.image_b} == {"train/00115", "test/00076"}


def test_each_evaluated_part_has_its_own_sentence_on_leaks(clean):
    """Test and val both share patients with train; val has the larger share, test is named all the same."""
    ds, n = clean.dataset, len(clean.dataset)
    splits = np.array((["train", "val", "train", "train"] * n)[:n])
    splits[-12:-6] = "test"
    groups = np.where(splits == "test", ds.groups[0], ds.groups)
    splits[0] = "train"
    groups[-12] = "another"
    found = replace(clean, dataset=replace(ds, groups=groups, splits=splits))
    says = [finding.text for finding in found.findings if "groups in" in finding.text or "group in" in finding.text]
    assert any(": 5 of 6 test images" in text for text in says) and any(" val images" in text for text in says)


def test_patients_that_are_known_count_even_if_others_are_not(clean):
    ds = clean.dataset
    groups, splits = ds.ids.copy(), np.full(len(ds), "train")
    groups[:4], splits[2:6] = "known", "test"
    found = audit(replace(ds, groups=groups, splits=splits, groups_known=False), weights=None, n_boot=100)
    assert len(np.unique(found.units[:4])) == 1 and found.units.max() < found.clusters.max()
    assert "2 of 4 test images (50.0%) are of a patient seen in train" in texts(found)
    assert "not known for all" in texts(found) and "by unit" in found.gap
    assert found.table().found["images of groups in two parts"] == "2 test/train"


def test_the_factor_of_an_interval_counts_large_units(clean):
    units = np.r_[np.zeros(101, int), 1 + np.arange(len(clean.dataset) - 101)]
    found, n = replace(clean, units=units), len(units)
    most = np.sqrt((101**2 + n - 101) / n)
    (factor,) = re.findall(r"is up to ([\d.]+) times too narrow", texts(found))
    assert float(factor) == pytest.approx(most, abs=0.051) and most > 1.2 * np.sqrt(n / (n - 100))


def test_a_difference_that_may_be_chance_is_not_called_memory(clean):
    def says(low):
        return texts(replace(clean, difference=Estimate(0.05, low, 0.1, "", 9, 9)))

    assert "is memory, not skill" in says(0.01) and "may be memory or chance" in says(-0.01)
    assert "not skill" not in texts(replace(clean, difference=Estimate(0.001, 0.0005, 0.01, "", 9, 9)))


def test_the_difference_is_paired(clean):
    """Two classifiers that err on the same images: each is uncertain, their difference is not."""
    ds, rng = clean.dataset, np.random.default_rng(0)
    p = np.clip(0.5 + 0.2 * (ds.labels - 0.5) + rng.normal(0, 0.2, len(ds)), 0.01, 0.99)
    one = np.stack([1 - p, p], axis=1)
    same = measures.difference(ds, one, one, clean.units, 200)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = np.clip(p - 0.02 * (ds.labels - 0.5), 0.01, 0.99)
    found = measures.difference(ds, one, np.stack([1 - worse, worse], axis=1), clean.units, 200)
    alone = measures.figures(ds, one, clean.units, 200)["auroc"]
    assert 0 < found.low <= found.value <= found.high and found.high - found.low < 0.5 * (alone.high - alone.low)


def test_doubts_of_a_classifier_that_guesses_are_called_little(clean):
    def says(low):
        auroc = {"auroc": Estimate(0.6, low, 0.7, "", 9, 9), "accuracy": Estimate(0.6, 0.5, 0.7, "", 9, 9)}
        found = suspects(clean.dataset, np.eye(2)[1 - clean.dataset.labels])
        return texts(replace(clean, suspects=found, gap={"by image": auroc, "by unit": auroc}))

    assert "no better than a guess" in says(0.45) and "no better than a guess" not in says(0.55)


def test_copies_of_an_official_split_are_weighed_by_what_crosses_it(clean):
    ds, n = clean.dataset, len(clean.dataset)
    clusters = np.r_[np.zeros(50, int), 1 + np.arange(n - 50)]
    splits = np.where(np.arange(n) < n // 2, "train", "test")
    unknown = replace(ds, groups=ds.ids, groups_known=False)
    weight = {}
    for name, parts in (("none", np.full(n, "")), ("official", splits)):
        found = replace(clean, dataset=replace(unknown, splits=parts), clusters=clusters)
        (weight[name],) = [f.weight for f in found.findings if "lie in 1 cluster of near-duplicates" in f.text]
    assert weight["official"] == pytest.approx(0.1 * weight["none"])


def test_images_that_are_alike_are_no_reason_to_join_patients(tmp_path, write_classes):
    """Radiographs of two patients can be very alike; a copy under two names is an error in the groups."""
    folder = write_classes(tmp_path / "set", {"a": 6, "b": 6})
    found = audit(open_dataset(folder, image_size=32), weights=None, n_boot=100)
    ds = replace(found.dataset, groups=np.arange(len(found.dataset)).astype(str), groups_known=True)

    def says(how):
        pairs = near.Pairs(np.array([0]), np.array([7]), np.array([how]), np.array([40]))
        return texts(replace(found, dataset=ds, pairs=pair_table(ds, pairs)))

    for how in near.KINDS:
        assert "clusters'" not in says(how)
        assert ("pair of copies under two" in says(how)) == (how in near.CERTAIN)
        assert ("Two patients can look as alike" in says(how)) == (how not in near.CERTAIN)
