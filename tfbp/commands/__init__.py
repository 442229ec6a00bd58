"""The command line: `main` finds the command, and the module of its name does the work.

A command is a module of this package that is named in `COMMANDS`. Its `main(recipes_folder,
arguments)` takes the rest of the line, and may return an exit code; its docstring is its help.
"""

import contextlib
import importlib
import logging
import os
import pathlib
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from absl import logging as absl_logging

import tfbp
from tfbp.commands.flags import HELP, Help
from tfbp.errors import CheckFailed, UserError, WorkerLost, mistake
from tfbp.reporting.table import table
from tfbp.workers.interruption import Interrupted

COMMANDS = {
    "list": ("", "the recipes, a line each"),
    "plan": ("RECIPE [--time] [--flag=value …]", "what a run would train, at what rate, how long"),
    "run": ("RECIPE [--flag=value …]", "train, evaluate and export; goes on with a stopped run"),
    "launch": ("--workers=N -- run RECIPE …", "several workers on this machine, for trying it out"),
    "evaluate": ("RUN [--split=test]", "the metrics of an ended run"),
    "export": ("RUN [--export_dir=…]", "the model of an ended run, as the next version"),
    "inspect": ("SAVED_MODEL", "signatures, labels, proof and size of an export"),
    "predict": ("SAVED_MODEL INPUT…", "what an export answers to images, prompts or numbers"),
    "serve": ("SAVED_MODELS [--flag=value …]", "TensorFlow Serving's API, for development"),
}


def main(recipes_folder: str | os.PathLike, argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code, see `exit_code`.

    Args:
        recipes_folder: where recipes are found by their names.
        argv: the command line, without the program.
    """
    command, *arguments = argv or ["list"]

    def run() -> int | None:
        tfbp.check_environment()
        if command in {"help", *HELP}:
            raise Help(_usage())
        if command not in COMMANDS:
            raise mistake("command", "must be one of the commands", command, COMMANDS)
        with quiet_start():
            module = importlib.import_module(f"tfbp.commands.{command}")
        return module.main(pathlib.Path(recipes_folder), arguments)

    return exit_code(run)


def exit_code(run: Callable[[], int | None]) -> int:
    """Calls a function, prints what it logs and the errors that a user can help, and returns the
    exit code: 0 or what it returns; 2 for a user's mistake; 1 if a proof or the comparison of an
    export failed; 75 for a run that was stopped and can go on; 130 for Ctrl-C; 141 if the reader of
    the output has gone, as in `… | head`.
    """
    try:
        with _log():
            code = _reported(run)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        return code
    except BrokenPipeError:
        if not _discard_unread_output():
            raise
        return 128 + signal.SIGPIPE


def _reported(run: Callable[[], int | None]) -> int:
    try:
        return run() or 0
    except Help as help_:
        print(help_)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    except WorkerLost as error:
        print(f"Failed: {error} Start all again: the run goes on.", file=sys.stderr)
        # On an ordinary exit TensorFlow may wait for the lost worker again (measured: a minute).
        sys.stdout.flush()
        os._exit(os.EX_TEMPFAIL)
    except Interrupted as stopped:
        reason = str(stopped) or "Stopped."
        print(f"{reason} The same command, without --restart, goes on.", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def _discard_unread_output() -> bool:
    """Redirects the standard streams whose reader has gone to nowhere, so that nothing fails when
    Python flushes them at its end; returns whether there are any.
    """
    unread = [each for each in (sys.stdout, sys.stderr) if each and _is_unread(each)]
    with open(os.devnull, "wb") as nowhere:
        for stream in unread:
            os.dup2(nowhere.fileno(), stream.fileno())
    return bool(unread)


def _is_unread(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream in memory
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _usage() -> str:
    lines = [(f"  {name} {operands}", summary) for name, (operands, summary) in COMMANDS.items()]
    return (
        "Usage: python -m recipes COMMAND …\n\n"
        f"{table(lines)}\n\n"
        "RECIPE is a name in the list, or the path of a Python file. RUN is a run's directory.\n"
        "COMMAND --help and run RECIPE --help say more."
    )


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hides the notes that TensorFlow writes while it is imported.

    Its C++ code writes some of them to the file descriptor of standard error before it reads
    TF_CPP_MIN_LOG_LEVEL (tensorflow/tensorflow#100442). At a level below 3 they are shown.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _log() -> Iterator[None]:
    """Shows what tfbp logs, and the warnings of others, as plain lines on standard error."""
    handler, verbosity = _Lines(), absl_logging.get_verbosity()
    logging.root.addHandler(handler)
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        logging.root.removeHandler(handler)


class _Lines(logging.Handler):
    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.pathname.startswith(os.path.dirname(tfbp.__file__))
        # TensorFlow's own logger has a handler already.
        return record.name == "absl" and (ours or record.levelno >= logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        lines = ("Warning: " if record.levelno >= logging.WARNING else "") + record.getMessage()
        if record.exc_info:
            lines += f"\n{logging.Formatter().formatException(record.exc_info)}"
        # As Python's own handlers do: what nobody reads is lost, whichever thread logs it.
        with contextlib.suppress(BrokenPipeError):
            print(lines, file=sys.stderr)
