"""How rank 0 speaks to the other ranks beside the collectives: one connection to each, which ends when a rank ends.

A collective says that somebody is missing; these connections say who. Messages are pickled; the connections carry
calls, answers and signs of life, never weights.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from queue import SimpleQueue
from typing import Any

from seedthink.errors import DeviceError
from seedthink.parallel.launch import Launch, own_address, share

_JOIN_SECONDS = 120.0
_PING_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Ping:
    """Rank 0 asks for a sign of life."""


@dataclass(frozen=True, slots=True)
class _Pong:
    """The sign: what the rank does, in words."""

    doing: str


class Lost(Exception):
    """Ranks whose process has ended: `ranks`."""

    def __init__(self, ranks: list[int]) -> None:
        super().__init__(f"ranks {ranks} have ended")
        self.ranks = ranks


class Hub:
    """Rank 0's side: `facts[rank]` is what each rank said of itself when it joined; `address` is this host's."""

    def __init__(self, launch: Launch, own_facts: Any) -> None:
        """Waits for every rank. Errors: DeviceError names those that do not come."""
        self.size = launch.size
        self.address = own_address() if launch.size > launch.local_size else "127.0.0.1"
        key = secrets.token_bytes(16)
        self._listener = Listener((self.address, 0), backlog=launch.size, authkey=key)
        share(launch, f"{self.address} {self._listener.address[1]} {key.hex()}")
        self._links: dict[int, Connection[Any, Any]] = {}
        self.facts: dict[int, Any] = {0: own_facts}
        self._accept()

    def _accept(self) -> None:
        joined = threading.Thread(target=self._welcome, daemon=True)
        joined.start()
        joined.join(_JOIN_SECONDS)
        missing = sorted(set(range(1, self.size)) - set(self._links))
        if missing:
            raise DeviceError(f"ranks {missing} did not join rank 0 within {_JOIN_SECONDS:g} s; look at their output")

    def _welcome(self) -> None:
        while len(self._links) < self.size - 1:
            link = self._listener.accept()
            rank, self.facts[rank] = link.recv()
            self._links[rank] = link

    def send(self, messages: Mapping[int, Any]) -> None:
        """One message to each rank named. Errors: `Lost`."""
        lost = []
        for rank, message in messages.items():
            try:
                self._links[rank].send(message)
            except OSError:
                lost.append(rank)
        if lost:
            raise Lost(lost)

    def poll(self, ranks: list[int], own: Any, seconds: float) -> dict[int, Any]:
        """Messages that come from `ranks`, and from `own` as rank 0, within `seconds`: at least one if any does.

        `own` has `fileno` and `recv`, or is None. Errors: `Lost` where a rank has ended.
        """
        links: dict[Any, int] = {self._links[rank]: rank for rank in ranks}
        if own is not None:
            links[own] = 0
        found, lost = {}, []
        ready: list[Any] = list(wait(list(links), timeout=seconds))
        for link in ready:
            rank = links[link]
            try:
                found[rank] = link.recv()
            except (EOFError, OSError):
                lost.append(rank)
        if lost:
            raise Lost(lost)
        return found

    def signs(self, ranks: list[int]) -> dict[int, str]:
        """What each of these ranks says that it does; "no sign of life" where it says nothing."""
        with suppress(Lost):
            self.send({rank: _Ping() for rank in ranks})
        until = time.monotonic() + _PING_SECONDS
        found = dict.fromkeys(ranks, "no sign of life")
        for rank in ranks:
            link = self._links[rank]
            with suppress(EOFError, OSError):
                while link.poll(max(0.0, until - time.monotonic())):
                    if isinstance(pong := link.recv(), _Pong):
                        found[rank] = pong.doing
                        break
        return found

    def close(self) -> None:
        """Ends the connections, at which the other ranks end."""
        for link in self._links.values():
            link.close()
        self._listener.close()


class Spoke:
    """Another rank's side. `receive` waits for rank 0's next message; None when rank 0 has ended or closed.

    A thread reads, so that signs of life go out while the rank is at work. When rank 0 ends in the middle of that work,
    `abandoned` is called from the thread: the rank may be waiting in a collective for ever.
    """

    def __init__(self, launch: Launch, facts: Any, abandoned: Callable[[], None]) -> None:
        address, port, key = share(launch, "").split()
        self._link = Client((address, int(port)), authkey=bytes.fromhex(key))
        self._link.send((launch.rank, facts))
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self._abandoned = abandoned
        self._lock = threading.Lock()
        self._doing: tuple[str, float] | None = None
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def receive(self) -> Any:
        """The next message, or None at the end."""
        self._doing = None
        return self._messages.get()

    def doing(self, what: str) -> None:
        """Notes what the rank does from now on."""
        self._doing = what, time.monotonic()

    def send(self, message: Any) -> None:
        """An answer to rank 0; nobody may be there to read it."""
        with self._lock, suppress(OSError):
            self._link.send(message)

    def _read(self) -> None:
        while True:
            try:
                message = self._link.recv()
            except (EOFError, OSError):
                self._messages.put(None)
                if self._doing is not None:
                    self._abandoned()
                return
            if isinstance(message, _Ping):
                what, since = self._doing or ("nothing", time.monotonic())
                self.send(_Pong(f"in {what} for {time.monotonic() - since:.0f} s"))
            else:
                self._messages.put(message)
