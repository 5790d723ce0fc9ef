"""What a worker in another process sends back: a value, or an exception that arrives as what it was raised as."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from seedthink.errors import RunError, SeedthinkError


@dataclass(frozen=True, slots=True)
class Answer:
    """A value, or an exception pickled (b"" where it cannot be) and in words."""

    value: Any = None
    error: bytes | None = None
    words: str = ""


def answer(work: Callable[[], Any], wanted: bool) -> Answer:
    """Do the work; its result stays here unless it is wanted. An exception's traceback goes to stderr."""
    try:
        value = work()
    except Exception as error:
        traceback.print_exc()
        return failure(error)
    return Answer(value if wanted else None)


def failure(error: Exception) -> Answer:
    """An exception on its way to another process."""
    words = traceback.format_exception_only(error)[-1].strip()
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        pickled = b""
    return Answer(None, pickled, words)


def raise_failure(found: Answer, where: str) -> NoReturn:
    """Raise what an answer says was raised, naming the place."""
    try:
        error = pickle.loads(found.error or b"")
    except Exception:
        raise RunError(f"{found.words} [{where}]") from None
    if isinstance(error, SeedthinkError):
        raise type(error)(f"{error} [{where}]")
    error.add_note(f"raised in {where}")
    raise error
