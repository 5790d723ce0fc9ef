"""The parser of the commands without a recipe: argparse, with the nearest name in its complaints."""

from __future__ import annotations

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from typing import NoReturn

from seedthink.config.suggest import did_you_mean
from seedthink.errors import ConfigError


class Parser(ArgumentParser):
    """An ArgumentParser whose mistakes are ConfigErrors that name the option or choice that was probably meant."""

    def __init__(self, prog: str, description: str | None = None, **settings: object) -> None:
        # No abbreviations: an option that is added later must not change what a script means.
        super().__init__(
            prog,
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print, with the nearest name."""
        near = next((hint for word in _wrong(message) if (hint := did_you_mean(word, self._names()))), "")
        raise ConfigError(f"{self.prog.removeprefix('seedthink ')}: {message}{near}; `{self.prog} --help` shows all")

    def _names(self) -> list[str]:
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        return options + [str(choice) for action in self._actions for choice in action.choices or ()]


def _wrong(message: str) -> Iterator[str]:
    """Yield the words that argparse complains about."""
    if "unrecognized arguments: " in message:
        yield from (word.partition("=")[0] for word in message.partition(": ")[2].split() if word.startswith("-"))
    if found := re.search(r"invalid choice: '([^']*)'", message):
        yield found[1]
