"""The command line: one thin file a command. Nothing imports this room, and it imports torch only when a command needs it."""

import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from legato import __version__, errors
from legato.cli import commands


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for what went wrong, 2 for what cannot be asked, 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        print(f"legato {__version__}")
        return 0
    command = tyro.extras.subcommand_cli_from_dict(
        dict(commands.TABLE),
        prog="legato",
        description="Which training objective should I use? Measured on your own data.",
        args=words,
    )
    return guarded(command.run)


def guarded(action: Callable[[], Any]) -> int:
    """Do it, and say in one line what the user can mend; a traceback is for our own faults only."""
    try:
        action()
    except errors.LegatoError as problem:
        print(f"legato: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, ValueError | TypeError) else 1
    except KeyboardInterrupt:
        print("legato: stopped. Finished trials are kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
