"""The errors this library raises on purpose.

Each message says what was given, what was expected and what to do next. The command line prints it
without a traceback; in a notebook it is the last line of one.
"""

import difflib
import warnings
from collections.abc import Iterable


class MedvitError(Exception):
    """Anything that the caller can put right.

    Its text has control characters escaped, line breaks excepted: names of files and classes come from outside, and a
    terminal would obey them. Where such a name is put into a message, `printable` escapes its line breaks too.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


class DataError(MedvitError, ValueError):
    """A data set, image, split or label that cannot be used as given."""


class WeightsError(MedvitError, ValueError):
    """Weights that are absent, damaged, or made for another architecture."""


class AdaptationError(MedvitError, ValueError):
    """An adapter, a pruning or a quantisation that the model cannot have; the model is left as it was."""


class TrainingError(MedvitError, RuntimeError):
    """A training that cannot start, go on, or be taken up again."""


class EvaluationError(MedvitError, ValueError):
    """Labels, probabilities or an operating point that cannot be evaluated as asked."""


class ExplanationError(MedvitError, ValueError):
    """A model that cannot be explained as asked, or an unknown way to explain it."""


def printable(text: object, keep: str = "") -> str:
    """Escape what is not printable (control characters, line breaks, text direction marks) as in a Python string."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_of(name: str, value: str, choices: Iterable[str], error: type[MedvitError] = MedvitError) -> None:
    """Raise the error, with the nearest choice, unless the value is one of the choices."""
    choices = list(choices)
    if value not in choices:
        nearest = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.0)[0]
        raise error(f"{name} {value!r} is unknown. Did you mean {nearest!r}? There are: {', '.join(choices)}.")


def plain_warnings() -> None:
    """Show warnings as one line, without the line of code that raised them; for a command or a notebook to call."""
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
