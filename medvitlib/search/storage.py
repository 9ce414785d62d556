"""Where a study is kept: a database, or a journal file on a shared disk."""

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna

from medvitlib.errors import TrainingError


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """A .journal file, or a database.

    Raises:
        TrainingError: neither, or it cannot be opened or reached.
    """
    if url.endswith(".journal"):
        path = Path(url).expanduser().absolute()
        if not path.parent.is_dir():
            raise TrainingError(f"storage {url!r}: there is no folder {path.parent}. Make it, on the shared disk.")
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    if "://" not in url:
        raise TrainingError(
            f"storage {url!r}: expected a path that ends in .journal, or a URL such as "
            "postgresql://user:password@host/database."
        )
    # SQLAlchemy's own choice for postgresql:// is a driver that nobody installs any more
    address = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    options = {"timeout": 60} if is_sqlite(url) else {"connect_timeout": 10}
    for attempt in range(3):
        try:
            return optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": options, "pool_pre_ping": True})
        except ImportError as error:
            raise TrainingError(
                f"storage {without_password(url)}: Python has no driver for it. PostgreSQL's: pip install "
                "'psycopg[binary]'."
            ) from error
        except (*_storage_errors(), ValueError, TypeError) as error:
            if attempt == 2 or "connect" in str(error):
                raise _unreachable(url, error) from error
            time.sleep(1 + random.random())  # two machines that make the tables at once


def _storage_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, optuna.exceptions.StorageInternalError


def _unreachable(url: str, error: Exception) -> TrainingError:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    words = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()[0]
    return TrainingError(
        f"storage {without_password(url)} cannot be used ({words}). Is the server running, and may this user write "
        "there?"
    )


def is_sqlite(url: str) -> bool:
    """Whether a database is a file that SQLite reads."""
    return url.startswith("sqlite:///")


def without_password(url: str) -> str:
    """As it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


@contextmanager
def said(url: str) -> Iterator[None]:
    """A storage that cannot be reached any more, in one sentence."""
    try:
        yield
    except _storage_errors() as error:
        raise _unreachable(url, error) from error
