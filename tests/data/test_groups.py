import csv
import re

import numpy as np
import pytest

from medvitlib.data.dicom import save_dicom
from medvitlib.data.folder import scan
from medvitlib.data.groups import assign_groups
from medvitlib.data.metadata import with_metadata
from medvitlib.errors import DataError


def groups_of(folder, groups=None) -> tuple[dict[str, str], bool]:
    listing, known = assign_groups(scan(folder), groups)
    return {sample.id: sample.group for sample in listing.samples}, known


@pytest.fixture
def folder(tmp_path, write_classes):
    return write_classes(tmp_path / "set", {"a": 2, "b": 2})


def test_without_any_hint_each_image_stands_for_itself(folder):
    found, known = groups_of(folder)
    assert not known and all(ident == group for ident, group in found.items())


@pytest.mark.parametrize(
    ("place", "prefix"),
    [("set/groups.csv", ""), ("set/manifest.csv", ""), ("groups.csv", "set/"), ("manifest.csv", "set/")],
)
def test_a_side_car_is_found(tmp_path, folder, place, prefix):
    lines = [f"{prefix}{c}/img_{k}.png,p{k}" for c in "ab" for k in range(2)]
    (tmp_path / place).write_text("\n".join(["path,group", "another/set.png,q", *lines]))
    found, known = groups_of(folder)
    assert known and found == {f"{c}/img_{k}.png": f"p{k}" for c in "ab" for k in range(2)}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("groups.csv", "place;patient\na/img_0.png;p\n", "one that names the path is missing"),
        ("Groups.CSV", "path,group\nimg_0.png,p\n", r"no line for 4 of 4.*its own first is 'img_0.png'"),
    ],
)
def test_a_groups_csv_beside_the_images_is_never_passed_over(folder, name, text, says):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=says):
        groups_of(folder)
    (folder / name).rename(folder.parent / name)  # above the set's folder it may belong to another
    assert not groups_of(folder)[1]


def test_an_empty_group_is_unknown(tmp_path, folder):
    (tmp_path / "g.csv").write_text(
        "path,group\n" + "".join(f"set/{c}/img_{k}.png,{c if k else ''}\n" for c in "ab" for k in (0, 1))
    )
    found, known = groups_of(folder, tmp_path / "g.csv")
    assert not known and found["a/img_1.png"] == "a" and found["a/img_0.png"] == "a/img_0.png"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,group\na/img_0.png,p\n", "no line for 3 of 4 images"),
        ("path,group\nb/other.png,p\n", "no line for 4 of 4"),
        ("path,group\na/img_0.png,p\na/img_0.png,q\n", "two groups, 'p' and 'q'"),
        ("file,name\na/img_0.png,p\n", "one that names the group is missing"),
    ],
)
def test_a_bad_side_car_says_what_is_wrong(folder, text, says):
    (folder / "mine.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        groups_of(folder, folder / "mine.csv")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("nowhere.csv", "no such file"), ("kermani", "one bracketed group"), ("(", "regex"), (r"(zzz)\d", "fits none")],
)
def test_a_bad_pattern_says_what_was_expected(folder, pattern, says):
    with pytest.raises(DataError, match=says):
        groups_of(folder, pattern)


def test_a_regular_expression_is_searched_in_the_id(folder):
    found, known = groups_of(folder, r"^(\w)/")
    assert known and found["a/img_0.png"] == found["a/img_1.png"] == "a"


def test_a_bracket_that_fits_nothing_is_unknown(folder):
    found, known = groups_of(folder, r"img_(1)?")
    assert not known and found["a/img_1.png"] == found["b/img_1.png"] == "1" and found["a/img_0.png"] == "a/img_0.png"


def test_patients_of_a_users_expression_are_the_same_in_every_split_folder(tmp_path, write_image):
    for part, name in (("train", "p1_a"), ("train", "p2_a"), ("test", "p1_b")):
        for kind in "xy":
            write_image(tmp_path / part / kind / f"{name}{kind}.png")
    found, _ = groups_of(tmp_path, r"(p\d)_")
    assert found["train/x/p1_ax.png"] == found["test/x/p1_bx.png"] == "p1"
    apart, _ = groups_of(tmp_path, r"^((?:train|test)/.*p\d)_")
    assert apart["train/x/p1_ax.png"] != apart["test/x/p1_bx.png"]


def test_what_groups_may_be_is_said(folder):
    with pytest.raises(DataError, match=r"groups=5: expected a CSV file"):
        groups_of(folder, 5)


def test_kermany_names_are_recognised_and_restart_in_test(tmp_path, write_image):
    names = {
        "train/PNEUMONIA/person23_bacteria_76.jpeg": "train/person23",
        "train/PNEUMONIA/person23_bacteria_77.jpeg": "train/person23",
        "val/PNEUMONIA/person23_virus_1_2.jpeg": "train/person23",
        "test/PNEUMONIA/person23_bacteria_78.jpeg": "test/person23",
        "train/NORMAL/IM-0115-0001.jpeg": "train/IM-0115",
        "train/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg": "train/NORMAL2-IM-0115",
    }
    for name in names:
        write_image(tmp_path / name)
    assert groups_of(tmp_path) == (names, True)


@pytest.mark.real_data
def test_the_kermany_pattern_equals_the_manifest(real_data):
    with (real_data / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "chest_xray"]
    listed = {row["path"].removeprefix("chest_xray/"): row["group"] for row in rows}
    by_pattern, known = groups_of(real_data / "chest_xray", "kermany")
    assert known and len(listed) == 5856 and by_pattern == listed
    assert groups_of(real_data / "chest_xray") == (listed, True)
    numbers = {
        part: {group.split("/")[1] for group in by_pattern.values() if group.startswith(part)}
        for part in ("train", "test")
    }
    assert len(numbers["train"] & numbers["test"]) == 170  # the same numbers, other children
    assert len(np.unique(list(by_pattern.values()))) == sum(map(len, numbers.values()))


def write_all(folder, names, write_image):
    for seed, name in enumerate(names):
        write_image(folder / name, seed)
    return folder


STRANGERS = {
    "series of an export": [
        f"{kind}/{kind[0]}{p:03d}/IM-{s + p % 6:04d}-{i:04d}.png"
        for kind in ("benign", "malignant")
        for p in range(8)
        for s in (1, 2)
        for i in (1, 2)
    ],
    "sessions": [f"{k}/person{s}_{k[0]}{p:03d}.png" for k in ("a", "b") for p in range(9) for s in (p, p + 1)],
    "a running number": [f"{kind}/IM-{n + 20 * (kind == 'b'):04d}-0001.png" for kind in "ab" for n in range(20)],
    "Kermany's, but of one class": [
        f"{kind}/IM-{n:04d}-0001.jpeg" for kind in ("NORMAL", "PNEUMONIA") for n in range(9)
    ],
}


@pytest.mark.parametrize("names", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.filterwarnings("ignore:patients are not known")
def test_names_that_look_like_patients_are_never_taken_for_them(tmp_path, write_image, names):
    found, known = groups_of(write_all(tmp_path, names, write_image))
    assert not known and all(group == name for name, group in found.items())


@pytest.mark.parametrize(
    ("names", "says", "groups"),
    [
        (STRANGERS["series of an export"], "a folder a patient: 16 groups of 4 to 4 images, such as 'b000'", 16),
        ([f"{k}/p{p:02d}_{v}.png" for k in "xy" for p in range(6) for v in "ab"], "a patient's number: 6 groups", 6),
        (
            [f"{k}/{k}w{p}-{v}.png" for k in "xy" for p in "abcdef" for v in (1, 2)],
            "PATIENT and a number: 12 groups",
            12,
        ),
    ],
)
def test_what_names_look_like_is_proposed_with_the_expression_to_pass(tmp_path, write_image, names, says, groups):
    write_all(tmp_path, names, write_image)
    with pytest.warns(UserWarning, match=says) as said:
        assert not groups_of(tmp_path)[1]
    expression = re.search(r"groups='(.*)'; nothing", str(said[0].message))[1].replace("\\\\", "\\")
    found, known = groups_of(tmp_path, expression)
    assert known and len(set(found.values())) == groups


@pytest.mark.parametrize(
    "names", [[f"{k}/{k} ({n}).png" for k in "ab" for n in range(9)], [f"{k}/{n}.png" for k in "ab" for n in range(9)]]
)
def test_a_count_within_a_class_is_no_proposal(tmp_path, write_image, names, recwarn):
    assert not groups_of(write_all(tmp_path, names, write_image))[1] and not recwarn.list


@pytest.mark.parametrize("column", ["patient_id", "PatientID", "subject", "case id", "Patient"])
@pytest.mark.parametrize("gap", ["", "nan", "None", "NULL", "N/A"])
def test_a_column_that_names_patients_is_read_and_said(tmp_path, write_image, column, gap):
    lines = [f"{k}.png,{'ab'[k % 2]},{f'p{k // 4}' if k < 16 else gap}" for k in range(20)]
    write_all(tmp_path, [f"{k}.png" for k in range(20)], write_image)
    (tmp_path / "list.csv").write_text(f"path,class,{column}\n" + "\n".join(lines))
    listing = scan(tmp_path / "list.csv")
    assert any(f"{column.lower()!r} as the group" in note for note in listing.notes)
    listing, known = assign_groups(listing, None)
    assert not known and [s.group for s in listing.samples] == [
        f"p{k // 4}" if k < 16 else f"{k}.png" for k in range(20)
    ]


def test_patients_of_dicom_files_are_read_from_their_headers(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for k in range(8):
        path = tmp_path / "ab"[k % 2] / f"IM{k:04d}"
        path.parent.mkdir(exist_ok=True)
        save_dicom(path, np.full((8, 8), 9 * k, np.uint8))
        file = pydicom.dcmread(path)
        file.PatientID = f"patient {k // 3}" if k < 6 else ""
        file.save_as(path)
    listing, known = assign_groups(with_metadata(scan(tmp_path), None), None)
    found = {sample.path.name: sample.group for sample in listing.samples}
    assert not known and [found[f"IM{k:04d}"] for k in range(6)] == [f"patient {k // 3}" for k in range(6)]
    assert "patients were read from the DICOM headers (PatientID)." in listing.notes


def test_a_table_above_about_another_set_says_nothing_about_this_one(tmp_path, write_image):
    """Its paths, without their first folder, would be files of this set."""
    folder = write_all(tmp_path / "ours", [f"{c}/img_{k}.png" for c in "ab" for k in range(3)], write_image)
    lines = [f"theirs/{c}/img_{k}.png,p{k}" for c in "ab" for k in range(3)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,group", *lines]))
    assert not groups_of(folder)[1]
