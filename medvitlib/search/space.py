"""The space of a hyper-parameter search: lists of values, or ranges, under the names of a training file's keys."""

import itertools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna

from medvitlib.errors import MedvitError, TrainingError, one_of
from medvitlib.training.config import of_kind

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly, or evenly in their logarithms.

    Attributes:
        whole: whole numbers only; true where both ends are.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def written(self) -> dict[str, float | int | bool]:
        """As a study file has it."""
        return {"low": self.low, "high": self.high, "log": self.log}

    def suggest(self, trial: optuna.trial.Trial, name: str) -> float | int:
        """A value for this trial, from the study's sampler."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)

    def draw(self, generator: random.Random) -> float | int:
        """A value by chance alone."""
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        return min(max(round(value), int(self.low)), int(self.high)) if self.whole else value


Space = dict[str, list[Value] | Range]


def read_space(content: Any, method: str) -> Space:
    """Check a space as a study file has it: `key: [values]`, or `key: {low: 1e-5, high: 1e-3, log: true}`.

    Raises:
        TrainingError: the space or a list in it is empty, a value twice in it, or a range that cannot be.
    """
    if not isinstance(content, dict) or not content:
        raise TrainingError(
            f"the space is {content!r}: expected at least one `key: [values]`, such as model.options.heads: [1, 2, 4]."
        )
    return {str(key): _values(str(key), values, method) for key, values in content.items()}


def _values(key: str, values: Any, method: str) -> list[Value] | Range:
    if isinstance(values, dict):
        if method == "grid":
            raise TrainingError(f"{key} is a range, of which a grid cannot try every value: give a list.")
        return _range(key, values)
    if not isinstance(values, list | tuple) or not values:
        raise TrainingError(f"{key} holds {values!r}: expected a list of values to try, one at least.")
    for value in values:
        if not isinstance(value, Value):
            raise TrainingError(f"{key} holds {value!r}: expected numbers, words, true, false or null.")
    if len({repr(value) for value in values}) < len(values):
        raise TrainingError(f"{key} holds a value twice: {list(values)}.")
    return list(values)


def _range(key: str, given: dict) -> Range:

    for name in given:
        one_of(f"{key}: key", name, ["low", "high", "log"], TrainingError)
    if not {"low", "high"} <= given.keys():
        raise TrainingError(f"{key} holds {given!r}: expected {{low: ..., high: ...}}, and log: true where it spans.")
    low, high = (of_kind(f"{key}: {end}", given[end], float) for end in ("low", "high"))
    log = of_kind(f"{key}: log", given.get("log", False), bool)
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        raise TrainingError(f"{key} goes from {low:g} to {high:g}: expected low < high{', above 0' if log else ''}.")
    whole = all(isinstance(given[end], int) for end in ("low", "high"))
    return Range(low, high, log, whole) if not whole else Range(int(low), int(high), log, whole)


def grid_points(space: Space) -> list[dict[str, Value]]:
    """Every combination, the last key changing fastest."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def random_points(space: Space, count: int, seed: int) -> list[dict[str, Value]]:
    """So many points by chance, no two the same; fewer where the space has hardly so many."""
    generator, found = random.Random(seed), {}
    for _ in range(100 * count):
        if len(found) < count:
            point = {k: v.draw(generator) if isinstance(v, Range) else generator.choice(v) for k, v in space.items()}
            found[repr(point)] = point
    return list(found.values())


def suggest(trial: optuna.trial.Trial, space: Space) -> dict[str, Value]:
    """The point of a trial: what was fixed in its plan, else what the study's sampler proposes."""
    return {
        key: v.suggest(trial, key) if isinstance(v, Range) else trial.suggest_categorical(key, v)
        for key, v in space.items()
    }


@contextmanager
def naming(point: dict[str, Value]) -> Iterator[None]:
    """What cannot be, with the point that asks for it."""
    try:
        yield
    except MedvitError as error:
        words = ", ".join(f"{key}={value}" for key, value in point.items())
        raise TrainingError(f"{words}: {error}") from error


def probes(space: Space) -> Iterator[dict[str, Value]]:
    """Points that have between them every value of a list and both ends of a range: to be tried before a search."""
    ends = {key: [v.low, v.high] if isinstance(v, Range) else v for key, v in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        yield from ({**first, key: value} for value in values[1:])
