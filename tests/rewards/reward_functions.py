"""Rewards as a user would write them, good and bad, called by name through worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any


def length(prompt: dict[str, Any], completion: str) -> float:
    return len(completion) / 10


def detailed(prompt: dict[str, Any], completion: str) -> dict[str, Any]:
    return {"score": 0.25, "right": True, "brevity": 1, "evidence": f"{prompt['family']} {prompt['reference']['due']}"}


def nan(prompt: dict[str, Any], completion: str) -> float:
    return float("nan")


def text(prompt: dict[str, Any], completion: str) -> str:
    return "good"


def nothing(prompt: dict[str, Any], completion: str) -> None:
    return None


def no_score(prompt: dict[str, Any], completion: str) -> dict[str, float]:
    return {"reward": 1.0}


def wrong_signature(completion: str) -> float:
    return 1.0


def raises(prompt: dict[str, Any], completion: str) -> float:
    raise LookupError("no such word")


def chatty(prompt: dict[str, Any], completion: str) -> float:
    print("a reward may print without breaking the protocol" * 100)
    sys.stdin.read()
    return 1.0


def obeys(prompt: dict[str, Any], completion: str) -> float:
    """Does what the completion says: hangs, spawns and hangs, exits, is killed, crashes, eats memory, or is right."""
    if completion == "hang":
        while True:
            pass
    if completion.startswith("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(completion.split()[1], "w") as note:
            note.write(str(child.pid))
        time.sleep(600)
    if completion == "exit":
        os._exit(3)
    if completion.startswith("killed once"):
        with contextlib.suppress(FileExistsError), open(completion.split()[2], "x"):
            os.kill(os.getpid(), signal.SIGKILL)
    if completion == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "crash":
        os.abort()
    if completion == "eat":
        return float(len(bytearray(1 << 40)))
    return 1.0


NOT_CALLABLE = 1


def modules(prompt: dict[str, Any], completion: str) -> dict[str, Any]:
    return {"score": 1.0, "evidence": str([name for name in ("torch", "ray", "transformers") if name in sys.modules])}
