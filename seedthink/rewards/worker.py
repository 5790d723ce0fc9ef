"""The process that runs verifiers, one item after another, until its parent closes the pipe or kills it.

Messages are 4 bytes of length and JSON: no pickle from a process that runs strangers' code. The protocol has copies of
stdin and stdout of its own; what a verifier prints goes to stderr. Each item arms an alarm whose default action ends
the process, so a worker whose parent died in mid-item does not outlive it by more than twice the limit.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

from seedthink.errors import ConfigError
from seedthink.rewards.verifiers import Verifier, load_verifier, run_verifier

HEADER = struct.Struct("<I")


def pack(message: object) -> bytes:
    """One framed message."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def unpack(buffer: bytearray) -> list[Any]:
    """Take every complete message off the front of the buffer."""
    messages, start = [], 0
    while len(buffer) - start >= HEADER.size:
        end = start + HEADER.size + HEADER.unpack_from(buffer, start)[0]
        if len(buffer) < end:
            break
        messages.append(json.loads(buffer[start + HEADER.size : end]))
        start = end
    del buffer[:start]
    return messages


def main() -> None:
    """Serve until end of file. First message: settings; then lists of [key, verifier name, prompt, response text].

    An item without a prompt only has its verifier loaded, and is answered by its key alone.
    """
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    settings = _read(requests)
    if settings is None:
        return
    sys.path[:] = settings["path"]
    if settings["memory_bytes"]:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_bytes"], hard))
    _send(replies, {"ready": True})
    loaded: dict[str, Verifier] = {}
    while (items := _read(requests)) is not None:
        for key, name, prompt, text in items:
            if name not in loaded:
                _send(replies, {"loading": name})
                try:
                    loaded[name] = load_verifier(name)
                except ConfigError as error:
                    _send(replies, {"refused": str(error)})
                    return
                _send(replies, {"loaded": name})
            if prompt is None:
                _send(replies, {"key": key})
                continue
            _judge(replies, key, loaded[name], prompt, text, settings["seconds"])


def _judge(replies: int, key: int, verifier: Verifier, prompt: dict[str, Any], text: str, seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
    judgement = run_verifier(verifier, prompt, text)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _send(replies, {"key": key, **asdict(judgement)})


def _read(requests: BinaryIO) -> Any:
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = requests.read(HEADER.unpack(header)[0])
    return json.loads(body)


def _send(replies: int, message: object) -> None:
    view: Sequence[int] | memoryview = memoryview(pack(message))
    while view:
        view = view[os.write(replies, bytes(view)) :]
