"""What is printed cannot change what a terminal shows."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvitlib.errors import DataError, MedvitError, TrainingError, printable


@given(st.text())
def test_printable_text_is_left_alone_and_the_rest_is_escaped_as_python_does(text):
    escaped = printable(text)
    assert escaped.isprintable() and (escaped == text) == text.isprintable()
    assert printable(text, keep="\n").count("\n") == text.count("\n")
    if "\\" not in text and "'" not in text:
        assert ast.literal_eval(f"'{escaped}'") == text


@pytest.mark.parametrize("kind", [MedvitError, DataError, TrainingError])
def test_a_message_keeps_its_lines_and_no_other_control_character(kind):
    error = kind("a\x1b[2J.png, \u202egpj.exe:\n  second line\t\r")
    assert str(error) == "a\\x1b[2J.png, \\u202egpj.exe:\n  second line\\t\\r"
