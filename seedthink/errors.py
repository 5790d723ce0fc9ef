"""The errors a user can meet, and what each one promises.

`ConfigError` and `DataError` are the user's to mend and always say how; `DeviceError` is about the machine and points
at `seedthink doctor`; `RunError` ends a run that cannot go on. All are picklable: no custom `__init__`, one message.
A broken invariant of our own is an `assert`, never one of these.
"""

from __future__ import annotations


class SeedthinkError(Exception):
    """Base of every error that seedthink raises on purpose; the command line prints it without a trace."""


class ConfigError(SeedthinkError):
    """A setting is unknown, out of range or without effect. The message names key, value and what is allowed."""


class DataError(SeedthinkError):
    """A file of the user's (model folder, dataset, checkpoint) cannot be used. The message names file and place."""


class DeviceError(SeedthinkError):
    """The machine lacks something. The message ends with the next command to run."""


class RunError(SeedthinkError):
    """A run cannot go on (a worker died too often, the loss is not finite). The message says what was saved."""
