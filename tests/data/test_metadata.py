"""What is known of images beside their class, how their values are shown, and what is printed of both."""

import json

import cv2
import numpy as np
import pytest

from medvitlib.audit import audit
from medvitlib.cli import main
from medvitlib.data import open_dataset, split
from medvitlib.data.dicom import save_dicom
from medvitlib.errors import DataError, EvaluationError
from medvitlib.training.features import extract_features

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    """60 images of 30 patients, of two classes; 16 bits, each with a range of its own."""
    for i in range(60):
        place = tmp_path / "set" / ("benign", "malignant")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = RNG.integers(100, 900 + 20 * i, (24, 24)).astype(np.uint16)
        cv2.imwrite(str(place / f"{i:02d}.png"), values)
    return tmp_path / "set"


@pytest.fixture
def table(folder, tmp_path):
    lines = ["path,patient_id,scanner,age,remark"]
    for i in range(60):
        kind = ("benign", "malignant")[i % 2]
        # the scanner goes with the class but for one image in six
        scanner = "AB"[i % 2] if i % 6 else "AB"[1 - i % 2]
        lines.append(f"{kind}/{i:02d}.png,P{i // 2:02d},{scanner},{40 + i % 7},words {i}")
    (tmp_path / "about.csv").write_text("\n".join(lines))
    return tmp_path / "about.csv"


def test_a_table_says_who_and_what(folder, table, capsys):
    ds = open_dataset(folder, image_size=16, metadata=table)
    assert ds.groups_known and len(np.unique(ds.groups)) == 30
    assert sorted(ds.metadata) == ["age", "remark", "scanner"]
    row = list(ds.ids).index("malignant/07.png")
    assert [ds.metadata[name][row] for name in ("scanner", "age", "remark")] == ["B", "40", "words 7"]
    parts = split(ds)
    part = parts.test
    assert all(len(values) == len(part) for values in part.metadata.values())
    i = list(ds.ids).index(part.ids[0])
    assert part.metadata["remark"][0] == ds.metadata["remark"][i]
    said = capsys.readouterr().out
    cut = "split by groups: train 36 images of 18 patients, val 12 images of 6 patients, test 12 images of 6 patients"
    assert said.splitlines()[-1] == parts.train.describe().splitlines()[-1] == cut
    assert "patients: 30, images each: 2; from column 'patient_id' of about.csv" in said
    assert "metadata: scanner (2 values), age (7 values), remark (60 values)" in said
    assert len(said.splitlines()) <= 10


def test_a_table_with_a_gap_or_without_the_file_is_refused(folder, table):
    with pytest.raises(DataError, match=r"no line for 1 of 60 images, the first \['malignant/59.png'\]"):
        table.write_text("\n".join(table.read_text().splitlines()[:-1]))
        open_dataset(folder, image_size=16, metadata=table)
    table.write_text("name,sex\na,F\n")
    with pytest.raises(DataError, match="one that names the path is missing"):
        open_dataset(folder, image_size=16, metadata=table)
    with pytest.raises(DataError, match="no such file"):
        open_dataset(folder, image_size=16, metadata="absent.csv")
    with pytest.raises(DataError, match="is rendered: it takes no groups, root, layout, metadata or window"):
        open_dataset("phantom/cxr", metadata=table)


def test_further_columns_of_a_manifest_are_metadata(folder, table):
    rows = table.read_text().splitlines()
    kinds = [line.split("/")[0] for line in rows[1:]]
    (folder / "all.csv").write_text("\n".join([f"{rows[0]},class", *map(",".join, zip(rows[1:], kinds, strict=True))]))
    ds = open_dataset(folder / "all.csv", image_size=16)
    assert sorted(ds.metadata) == ["age", "remark", "scanner"] and ds.groups_known
    assert "all.csv, a line an image: path from 'path', class from 'class', group from 'patient_id'" in ds.describe()


def test_the_audit_finds_the_column_that_goes_with_the_class(folder, table):
    found = audit(open_dataset(folder, image_size=32, metadata=table), weights=None, n_boot=100)
    assert found.baselines["metadata: scanner"].value > 0.7
    assert "metadata: remark" not in found.baselines and found.baselines["metadata: age"].low < 0.6
    (text,) = [f.text for f in found.findings if f.text.startswith("Metadata: scanner alone reaches AUROC")]
    assert "compare within its values" in text


def test_a_window_is_the_same_for_all_images_and_kept_with_the_model(folder):
    own = open_dataset(folder, image_size=24)
    fixed = open_dataset(folder, image_size=24, window=(0, 4095))
    for i in range(len(own)):
        values = cv2.imread(str(own.files[i]), cv2.IMREAD_UNCHANGED).astype(float)
        low, high = values.min(), values.max()
        np.testing.assert_allclose(own.images[i][..., 0], (values - low) / (high - low) * 255, atol=0.51)
        np.testing.assert_allclose(fixed.images[i][..., 0], values / 4095 * 255, atol=0.51)
    assert "These differ (100..1" in own.describe() and "pass window=(100, " in own.describe()
    assert "values: 0 to 4095 are shown from black to white in all images" in fixed.describe()
    assert own.fingerprint != fixed.fingerprint


def test_a_model_shows_new_images_as_those_of_its_training(folder, table, tmp_path, monkeypatch):
    from medvitlib.evaluate import evaluate_saved
    from medvitlib.predict import Predictor

    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "run.yaml").write_text(
        f"name: windowed\ndata: {{name: {folder}, image_size: 32, positive: malignant, metadata: {table}, "
        "window: [0, 4095]}\nmodel: {name: vit_scratch, weights: null, options: {dim: 24, depth: 1, heads: 2}}\n"
        "train: {epochs: 1}\n"
    )
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    run = tmp_path / "runs" / "windowed"
    assert json.loads((run / "model.json").read_text())["preprocessing"]["window"] == [0, 4095]
    assert "0 to 4095 are shown" in (run / "data.txt").read_text()
    ds = open_dataset(folder, image_size=32, positive="malignant", window=(0, 4095))
    answers = list(Predictor(run).predict([str(file) for file in ds.files[:8]]))
    direct = list(Predictor(run).predict(ds.images[:8]))
    for one, other in zip(answers, direct, strict=True):
        np.testing.assert_allclose(list(one.probabilities.values()), list(other.probabilities.values()), atol=1e-6)
    assert len(evaluate_saved(run, ds).classes) == 2
    with pytest.raises(EvaluationError, match=r"trained with window=\(0.0, 4095.0\).* opened with window=None"):
        evaluate_saved(run, open_dataset(folder, image_size=32, positive="malignant"))


def test_features_of_two_windows_are_not_mixed_up(folder):
    from medvitlib.models.zoo import build

    model = build("vit_scratch", 2, weights=None, image_size=32, dim=24, depth=1, heads=2)
    one, other = (extract_features(model, open_dataset(folder, image_size=32, window=(0, n))) for n in (1000, 4000))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("window", [5, "wide", (1, 1), (3, 2), (0, float("nan")), (0, 1, 2)])
def test_what_is_no_window_is_refused(folder, window):
    with pytest.raises(DataError, match="expected two numbers"):
        open_dataset(folder, image_size=16, window=window)


@pytest.mark.parametrize("kind", ["int16", "int32", "float32"])
def test_signed_and_floating_tiffs_need_a_window(tmp_path, kind):
    for i in range(8):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        values = np.linspace(-1000, 1000 + 10 * i, 400).reshape(20, 20).astype(kind)
        cv2.imwrite(str(tmp_path / "ab"[i % 2] / f"{i}.tif"), values)
    with pytest.raises(DataError, match=r"(int\d+|float32) pixels, -1000 to 10\d\d: .* Pass window=\(lower, upper\)"):
        open_dataset(tmp_path, image_size=20)
    ds = open_dataset(tmp_path, image_size=20, window=(-1000, 1000))
    values = np.linspace(-1000, 1000, 400).reshape(20, 20).astype(kind).astype(float)
    np.testing.assert_allclose(ds.images[0][..., 0], ((values + 1000) / 2000 * 255).clip(0, 255), atol=0.51)


@pytest.fixture
def discs(tmp_path):
    """DICOM files without endings, as a disc has them: two images a study, two studies a patient."""
    pydicom = pytest.importorskip("pydicom")
    for k in range(40):
        place = tmp_path / "disc" / "ab"[k % 2] / f"S{k // 2}"
        place.mkdir(parents=True, exist_ok=True)
        save_dicom(place / f"I{k}", RNG.integers(0, 255, (20, 20)).astype(np.uint8), inverted=k % 8 == 0)
        file = pydicom.dcmread(place / f"I{k}")
        file.PatientID, file.StudyInstanceUID = f"patient {k // 4}", f"1.2.{k // 2}"
        file.ViewPosition, file.ImageLaterality = ("PA", "LL")[k % 2], "LR"[k // 20]
        file.BurnedInAnnotation = "YES" if k < 3 else "NO"
        file.save_as(place / f"I{k}")
    index = bytearray((tmp_path / "disc" / "a" / "S0" / "I0").read_bytes())
    (tmp_path / "disc" / "a" / "DICOMDIR").write_bytes(index)
    return tmp_path / "disc"


def test_headers_of_a_disc_are_metadata_and_its_index_is_passed_over(discs, capsys):
    with pytest.warns(UserWarning, match=r"1 of 41 files .* DICOMDIR \(not an image\)"):
        ds = open_dataset(discs, image_size=20)
    assert len(ds) == 40 and ds.groups_known and len(np.unique(ds.groups)) == 10
    assert set(ds.metadata["ViewPosition"]) == {"PA", "LL"} and set(ds.metadata["ImageLaterality"]) == {"L", "R"}
    assert not {"PatientID", "StudyInstanceUID"} & set(ds.metadata)
    assert [bad.reason for bad in ds.quarantine] == ["the index of a disc, which has no picture"]
    assert "patients: 10, images each: 4; from DICOM headers, PatientID" in capsys.readouterr().out
    found = audit(ds, weights=None, n_boot=100)
    texts = " ".join(finding.text for finding in found.findings)
    assert "3 images with text in the picture" in texts and "mixed (5 MONOCHROME1, 35 MONOCHROME2)" in texts
    assert "Metadata: ViewPosition alone reaches AUROC 1.000" in texts
    assert found.files.loc["a", "modes"] == "20 DICOM 8"


def test_without_a_patient_a_study_is_kept_together(discs):
    pydicom = pytest.importorskip("pydicom")
    for path in discs.rglob("I*"):
        if path.is_file():
            file = pydicom.dcmread(path)
            file.PatientID = ""
            file.save_as(path)
    with pytest.warns(UserWarning, match="DICOMDIR"):
        ds = open_dataset(discs, image_size=20)
    assert not ds.groups_known and len(np.unique(ds.groups)) == 20
    parts = split(ds)
    assert not set(parts.train.groups) & set(parts.test.groups)
    assert "patients: not known; 20 groups of images are kept together" in ds.describe()


def test_a_folder_is_described_on_the_command_line(folder, table, tmp_path, capsys):
    page = tmp_path / "page.html"
    asked = ["--metadata", str(table), "--window", "0,4095", "--html", str(page)]
    assert main(["data", "describe", str(folder), *asked]) == 0
    said = capsys.readouterr().out
    assert said.startswith("set: a folder for each class (") and "classes: 30 benign, 30 malignant" in said
    text = page.read_text()
    assert text.count("<img ") == 16 and "from column &#x27;patient_id&#x27; of about.csv" in text
    for wrong in (["--window", "a,b"], ["--window", "3"], ["--assume", "classes"], ["--metadata", "none.csv"]):
        assert main(["data", "describe", str(folder), *wrong]) == 1
        assert capsys.readouterr().err.startswith("medvit: ")
    assert main(["data", "describe", str(folder), "--html", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_what_is_printed_stays_below_ten_lines_and_is_said_once(folder, capsys):
    for k in range(9):  # each is a side file or a note
        (folder / "benign" / f"remark{k}.txt").write_text("x")
    with pytest.warns(UserWarning, match="left out"):
        ds = open_dataset(folder, image_size=20)
        open_dataset(folder, image_size=20)
    said = capsys.readouterr().out.splitlines()
    assert said == ds.describe().splitlines() and len(said) <= 10
    assert "files left out: 9 (9 not an image)" in said
    with pytest.warns(UserWarning):
        open_dataset(folder, image_size=22, quiet=True)
    assert capsys.readouterr().out == ""
