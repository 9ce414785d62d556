import io
import pickle
import zipfile

import numpy as np
import pytest

from medvitlib.npzfile import BadNpz, open_npz, read_header, read_member


def archive(path, content: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">f4", "U5", "?"])
def test_what_numpy_saved_is_read_as_numpy_reads_it(tmp_path, dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4) % 5, dtype=dtype, order=order)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    with open_npz(tmp_path / "a.npz") as file:
        assert read_header(file, "x.npy") == ((3, 4), order == "F", array.dtype)
        assert (read_member(file, "x.npy") == array).all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy(np.arange(9))[:-1], r"an array says \(9,\)"),
        (npy(np.arange(9)) + b"x", r"an array says \(9,\)"),
        (npy(np.arange(9)).replace(b"(9,)", b"(-9,)"), "damaged"),
        (npy(np.arange(9))[:40], "damaged"),
        (b"", "damaged"),
        (pickle.dumps([1]), "damaged"),
        (npy(np.array([None])), "pickled Python objects"),
    ],
)
def test_a_member_that_is_not_the_array_it_says_is_refused(tmp_path, content, says):
    with open_npz(archive(tmp_path / "a.npz", {"x.npy": content})) as file:
        for read in (read_header, read_member):
            with pytest.raises(BadNpz, match=says):
                read(file, "x.npy")


def test_what_is_no_archive_is_refused_and_an_absent_file_is_an_os_error(tmp_path):
    for content, says in ((b"", "not an npz"), (pickle.dumps([1]), "a pickle"), (b"PK\x03\x04junk", "damaged")):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(BadNpz, match=says):
            open_npz(tmp_path / "a.npz")
    with pytest.raises(OSError):
        open_npz(tmp_path / "none.npz")
