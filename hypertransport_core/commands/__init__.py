"""The commands of `python -m hypertransport_core`. Errors are one sentence on stderr and exit code 2, no traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import ClassVar, NoReturn

from ..files import FileError

COMMANDS: dict[str, str] = {
    "bench": "measure what predicting, fitting, steering and training cost, as ratios within one run",
    "concepts": "list, show and check the shipped concepts or a list of your own",
    "demo": "make pictures steered by concepts, at several strengths, on one labelled sheet",
    "evaluate": "measure steering on held-out concepts against prompting and per-concept fits",
    "results": "write the results page: every claim measured again, with tables, charts and pictures",
    "sites": "count and list the places of a model family that can be steered",
}
USER_ERROR, INTERRUPTED, BUG = 2, 130, 1


class CommandError(ValueError):
    """A command line that cannot be carried out; the message is one sentence with the cure."""


class Parser(argparse.ArgumentParser):
    """argparse that refuses in one sentence, without repeating all options."""

    status: ClassVar[int] = USER_ERROR

    def error(self, message: str) -> NoReturn:
        self.exit(self.status, f"{sentence(message)} See `{self.prog} --help`.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 2 refused in one sentence, 130 stopped with Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(
        prog="python -m hypertransport_core",
        description="HyperTransport: steer a text-to-image model with concepts, without fitting.",
    )
    choices = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        command = choices.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.add_argument("--traceback", action="store_true", help="show where in the program an error happened")
        if name in arguments[:1]:  # the others' modules are not needed, and take time to import
            import_module(f".{name}", __name__).add_arguments(command)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said what is wrong, or has printed the help
        return int(stop.code or 0)
    return guarded(import_module(f".{options.command}", __name__).run, options)


def guarded(run: object, options: argparse.Namespace) -> int:
    """`run(options)` with every error turned into one sentence and an exit code."""
    try:
        return int(run(options) or 0)  # type: ignore[operator]
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.traceback:
            raise
        if _is_ours(error):
            print(sentence(str(error), capital=not isinstance(error, FileError)), file=sys.stderr)
            return USER_ERROR
        print(
            f"An unexpected error stopped the command ({sentence(f'{type(error).__name__}: {error}').rstrip('.')}); "
            "run it again with --traceback to see where.",
            file=sys.stderr,
        )
        return BUG


def sentence(message: str, capital: bool = True) -> str:
    """The message on one line, with a full stop and, unless it begins with a path, a capital."""
    message = " ".join(message.split())
    if not message.endswith((".", "!", "?")):
        message += "."
    return message[:1].upper() + message[1:] if capital else message


def _is_ours(error: Exception) -> bool:
    """Whether the message was written for the user: our own kinds of error, whose text is a sentence with a cure."""
    return isinstance(error, (ValueError, RuntimeError)) and type(error).__module__.startswith(
        __package__.rsplit(".", 1)[0]
    )
