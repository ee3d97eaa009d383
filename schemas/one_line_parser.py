"""An argparse parser whose errors are one line, as those of the jobs are, with the nearest known word."""

import argparse
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from schemas.settings import suggestion

_WRONG_WORD = re.compile(r"invalid choice: '(?P<choice>[^']*)'|^unrecognized arguments: (?P<flag>-[^ =]+)")


class OneLineParser(argparse.ArgumentParser):
    """Its subcommands are parsers of this class, too."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with status 2."""
        message = re.sub(r" \(choose from .*\)$", "", message)
        print(f"error: {message}{self._hint(message)}", file=sys.stderr)
        sys.exit(2)

    def _hint(self, message: str) -> str:
        found = _WRONG_WORD.search(message)
        if found is None:
            return f"; see {self.prog} --help"
        if found["flag"]:
            return suggestion(found["flag"], set(_flags(self)))
        named = re.match(r"argument (?:-\w/)?(--[\w-]+)", message)
        choices = [
            str(choice)
            for action in self._actions
            if (named[1] in action.option_strings if named else not action.option_strings)
            for choice in action.choices or ()
        ]
        return suggestion(found["choice"], choices)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options of a parser and of its subcommands: an unknown one is noticed when all have been read."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for subcommand in action.choices.values():
                yield from _flags(subcommand)
