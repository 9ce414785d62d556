"""CSV files: every value reads back, whoever reads it, and every line ends in the same way."""

import csv
import io

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from medvitlib.jsonfile import csv_line, csv_text

VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ROWS = st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1)


@given(ROWS)
def test_values_read_back_and_lines_end_in_a_line_feed(rows):
    text = "".join(map(csv_line, [["a", "b", "c"], *rows]))
    assert text.endswith("\n") and not text.endswith("\r\n")
    assert text == csv_text(pd.DataFrame(rows, columns=["a", "b", "c"]), index=False) or "\r" in text
    for written in (text, csv_text(pd.DataFrame(rows, columns=["a", "b", "c"]))):
        assert list(csv.reader(io.StringIO(written, newline="")))[1:] == rows
        read = pd.read_csv(io.BytesIO(written.encode()), dtype=str, keep_default_na=False)
        assert read.to_numpy().tolist() == rows


def test_numbers_are_as_short_as_tells_them_from_others_and_nothing_is_nothing():
    table = pd.DataFrame({"x": [0.1, np.nan], "y": np.array([0.1, 1 / 3], np.float32), "n": [1, 2]})
    assert csv_text(table) == "x,y,n\n0.1,0.1,1\n,0.33333334,2\n"
    assert csv_text(table.assign(x=["a\rb", "c"])) == '"x","y","n"\n"a\rb",0.1,1\n"c",0.33333334,2\n'
