"""The trials of an Optuna study as a queue: each is taken once, by whichever worker on whichever machine comes first.

Optuna's own loop asks its sampler for a new trial whenever none is waiting, so that several workers overrun a grid, and
its heartbeats know databases only. Here a study is made of waiting trials by the one process that creates it; a worker
takes those, and no others, until none is left; a trial whose worker is gone is taken back and waits again.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, Trial, TrialState

from medvitlib.errors import MedvitError, TrainingError
from medvitlib.jsonfile import differences
from medvitlib.search.storage import is_sqlite, open_storage, said, without_password

BEAT = 10.0  # seconds between two signs of life
GRACE = 90.0  # seconds without one after which a worker on another machine counts as gone
DEATHS = 3  # a trial that took so many workers with it is not tried again

Plan = list[dict[str, Any]]
"""Trials to be: what is fixed of each one's parameters."""


class Queue:
    """A study in a storage.

    Args:
        storage: None for `study.db` (SQLite) in the folder; a path ending in .journal, to be shared by machines that
            share a disk; or a database's URL, such as postgresql://user:password@host/database.
        sampler: of the parameters that the plan leaves open.

    Raises:
        TrainingError: the storage cannot be opened or reached.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        storage: str | None = None,
        *,
        direction: str = "maximize",
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
    ):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.direction, self.sampler = name, direction, sampler
        self.pruner = pruner or optuna.pruners.NopPruner()
        folder.mkdir(parents=True, exist_ok=True)
        self.url = storage or f"sqlite:///{folder.absolute() / 'study.db'}"
        self.storage = open_storage(self.url)
        # SQLite has no SELECT ... FOR UPDATE: two processes could both read that a trial waits, and take it
        self._alone = FileLock(f"{self.url.removeprefix('sqlite:///')}.lock") if is_sqlite(self.url) else nullcontext()
        self.study: optuna.Study | None = None
        self._seen: dict[int, tuple[Any, float]] = {}  # trial -> its last sign of life, and when it was new

    def join(self, asked: dict[str, Any], plan: Plan) -> None:
        """Create the study with these trials, or join the one of this name.

        Args:
            asked: what the study is about; JSON-able. Whoever joins must be asked the same.

        Raises:
            TrainingError: the study of this name was asked something else.
        """
        options = {"sampler": self.sampler, "pruner": self.pruner}
        with said(self.url), self._alone:
            try:  # exactly one process succeeds
                self.study = optuna.create_study(
                    study_name=self.name, storage=self.storage, direction=self.direction, **options
                )
                created = True
            except optuna.exceptions.DuplicatedStudyError:
                self.study = optuna.load_study(study_name=self.name, storage=self.storage, **options)
                created = False
            self._id = self.storage.get_study_id_from_name(self.name)
            if created:
                self.study.set_user_attr("asked", asked)
                self._fill(plan)
        if not created:
            with said(self.url):
                self._wait_until_filled()
            if found := differences(self.study.user_attrs["asked"], asked):
                different = [f"{key} was {before!r}, now {now!r}" for key, (before, now) in found.items()]
                raise TrainingError(
                    f"There is a study {self.name!r} in {self.place} already, of something else: "
                    f"{'; '.join(different)}. Ask the same, or give this one another name"
                    f"{', or remove that file.' if is_sqlite(self.url) else '.'}"
                )
            with said(self.url), self._alone:
                self._fill(plan)

    def look(self) -> None:
        """Join as a reader.

        Raises:
            TrainingError: there is no study of this name.
        """
        with said(self.url):
            try:
                self._id = self.storage.get_study_id_from_name(self.name)
            except KeyError:
                raise TrainingError(f"There is no study {self.name!r} in {self.place}: run it first.") from None

    @property
    def place(self) -> str:
        """The storage, without a password."""
        return without_password(self.url)

    def trials(self) -> list[FrozenTrial]:
        """Every trial, in the order in which they were put there."""
        return self.storage.get_all_trials(self._id)

    def work(
        self, run: Callable[[Trial], float], *, after: Callable[[], object] | None = None, idle: float = 1.0
    ) -> None:
        """Run trials until none waits and none runs elsewhere; safe in any number of processes at once.

        A trial whose `run` raises is recorded as failed, with its error; one that raises `optuna.TrialPruned`, as
        pruned. KeyboardInterrupt and SystemExit leave it to be run again.

        Args:
            run: does what the trial's parameters say; returns the value.
            after: called when a trial has ended, however.
            idle: seconds between two looks while others are still running theirs.
        """
        while True:
            with said(self.url):
                trial = self._take()
                if trial is None:
                    self._take_back()
                    left = [t for t in self.trials() if not t.state.is_finished()]
                    if not left:
                        return
            if trial is None:
                time.sleep(idle)
                continue
            with self._alive(trial):
                try:
                    outcome: float | Exception = run(trial)
                except Exception as problem:  # the rest go on, whatever it was
                    outcome = problem
            with said(self.url):
                self._tell(trial, outcome)
            if after:
                after()

    def again(self, failed: bool = False) -> int:
        """Put trials back whose workers are gone, and, if asked, those that failed; returns how many are not done."""
        with said(self.url), self._alone:
            self._take_back()
            if failed:
                trials = self.trials()
                done = {t.user_attrs["point"] for t in trials if t.state != TrialState.FAIL}
                for trial in {t.user_attrs["point"]: t for t in trials}.values():
                    if trial.user_attrs["point"] not in done:
                        self._wait_again(trial)
            return sum(not t.state.is_finished() for t in self.trials())

    def _fill(self, plan: Plan) -> None:
        """Every trial of the plan that is not there: all of a new study, or what somebody died over."""
        # whoever found a trial's worker gone is about to put it back; after a while he is gone himself
        recent = datetime.now() - timedelta(seconds=GRACE)
        there = {t.user_attrs["point"] for t in self.trials() if not t.user_attrs.get("died") or _ended(t) > recent}
        for number, fixed in enumerate(plan):
            if number not in there:
                self.study.enqueue_trial(fixed, user_attrs={"point": number})
        if self.study.user_attrs.get("filled", 0) < len(plan):
            self.study.set_user_attr("filled", len(plan))

    def _wait_until_filled(self) -> None:
        """Whoever created the study is putting the trials there, unless he is gone."""
        before, since = -1, time.monotonic()
        while "filled" not in self.study.user_attrs or "asked" not in self.study.user_attrs:
            if (now := len(self.trials())) != before:
                before, since = now, time.monotonic()
            if time.monotonic() - since > GRACE / 3:
                if "asked" not in self.study.user_attrs:
                    raise TrainingError(f"The study {self.name!r} in {self.place} holds nothing: give another name.")
                return
            time.sleep(0.2)

    def _take(self) -> Trial | None:
        """The first trial that waits."""
        with self._alone:
            # through the study, whose own cache of the storage must have seen a trial before it is run
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                number = self._number(trial)
                try:
                    if self.storage.set_trial_state_values(number, TrialState.RUNNING):
                        self.storage.set_trial_user_attr(number, "worker", _me())
                        return Trial(self.study, number)
                except optuna.exceptions.UpdateFinishedTrialError:
                    continue  # somebody was faster
        return None

    def _tell(self, trial: Trial, outcome: float | Exception) -> None:
        number = self.storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        pruned, failed = isinstance(outcome, optuna.TrialPruned), isinstance(outcome, Exception)
        state = TrialState.PRUNED if pruned else TrialState.FAIL if failed else TrialState.COMPLETE
        try:
            if state == TrialState.FAIL:
                self.storage.set_trial_user_attr(number, "error", _in_words(outcome))
            self.storage.set_trial_state_values(number, state, None if failed else [outcome])
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # this worker was so slow that it was given up; the trial is somebody else's now

    def _take_back(self) -> None:
        """Trials whose workers are gone wait again, under a new number; the old one counts as failed."""
        with self._alone:
            for trial in self.storage.get_all_trials(self._id, states=(TrialState.RUNNING,)):
                if not self._is_gone(trial):
                    continue
                number = self._number(trial)
                try:
                    self.storage.set_trial_user_attr(number, "died", True)
                    self.storage.set_trial_state_values(number, TrialState.FAIL)
                except optuna.exceptions.UpdateFinishedTrialError:
                    continue
                self._wait_again(trial)

    def _wait_again(self, trial: FrozenTrial) -> None:
        kept = {k: v for k, v in trial.user_attrs.items() if k not in ("worker", "beat", "left", "died", "error")}
        if "error" in trial.user_attrs:  # somebody wants it tried again
            kept["deaths"] = 0
        elif not trial.user_attrs.get("left"):
            kept["deaths"] = kept.get("deaths", 0) + 1
        fixed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if kept.get("deaths", 0) < DEATHS:
            self.study.enqueue_trial(fixed, user_attrs=kept)
            return
        error = f"Its worker died {DEATHS} times: out of memory, perhaps."
        attributes = {**kept, "error": error}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL, system_attrs={"fixed_params": fixed}, user_attrs=attributes
            )
        )

    def _is_gone(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs this trial any more: at once on this machine, after a while on another."""
        worker = trial.user_attrs.get("worker")
        if trial.user_attrs.get("left"):
            return True
        if worker and worker.split()[0] == _me().split()[0]:
            return worker != _me(int(worker.split()[1]))
        sign = (worker, trial.user_attrs.get("beat"))
        last, since = self._seen.get(trial.number, (None, 0.0))
        if sign != last:  # by this machine's clock, whatever the other one shows
            self._seen[trial.number] = sign, time.monotonic()
            return False
        return time.monotonic() - since > GRACE

    def _number(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)

    @contextmanager
    def _alive(self, trial: Trial) -> Iterator[None]:
        """Signs of life while a trial runs; one that is left by Ctrl-C or SIGTERM says so."""
        number = self.storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        ended = threading.Event()

        def beat() -> None:
            count = 0
            while not ended.wait(BEAT):
                count += 1
                with suppress(Exception):  # a storage that is away for a moment: the next sign may get through
                    self.storage.set_trial_user_attr(number, "beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # else it is found out a little later
                self.storage.set_trial_user_attr(number, "left", True)
            raise
        finally:
            ended.set()
            thread.join()


def _me(pid: int | None = None) -> str:
    """This process, or another one of this machine, as "host pid start": a later process of that number differs."""
    pid = os.getpid() if pid is None else pid
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start = "gone" if fields[0] in "ZX" else fields[19]  # Z: it has died, and nobody has asked after it yet
    except OSError:  # no such process, or no Linux
        try:
            os.kill(pid, 0)
            start = "?"
        except OSError:
            start = "gone"
    return f"{platform.node() or 'here'} {pid} {start}"


def _ended(trial: FrozenTrial) -> datetime:
    return trial.datetime_complete or datetime.max


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, MedvitError) else f"{type(error).__name__}: {error}"
