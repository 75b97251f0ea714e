"""The command line: each command is thin, says what it did, and turns errors into one paragraph."""

import codecs
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
import typer

from cmrfed.cli import compare, configure, data, deploy, evaluate, privacy, run
from cmrfed.cli.doctor import doctor
from cmrfed.cli.plugins import plugins
from cmrfed.core.errors import CmrfedError, leave_error
from cmrfed.core.progress import console, say

app = typer.Typer(
    name="cmrfed",
    help="Federated, differentially private generation of synthetic cardiac MRI (short axis, with labels).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (data, configure, run, evaluate, compare, privacy, deploy):
    commands.add_to(app)
app.command(epilog="Example: cmrfed doctor --recipe demo")(doctor)
app.command(epilog="Example: cmrfed plugins")(plugins)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def _prepare_libraries() -> None:
    """Set up libraries before they are loaded: no telemetry, no chatter."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("flwr", "diffusers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _speak_utf_8() -> None:
    """Read names and write text as UTF-8, whatever the locale.

    A terminal of another encoding gets escapes for the signs that it lacks. PYTHONIOENCODING stays above that.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:  # the locale C
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606 - this command again
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # what a test has put there
            continue
        if os.environ.get("PYTHONIOENCODING") or stream.isatty():
            stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def _ctrl_c_as_such() -> Iterator[None]:
    """Make whatever Ctrl-C ends end as a KeyboardInterrupt.

    A library that runs Python of ours inside native code may wrap the interrupt in an error of its own (pydantic does
    while it writes JSON), which would look like a fault of the program.
    """
    pressed: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        pressed.append(signum)
        signal.default_int_handler(signum, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the command line; exit status 0 only on success."""
    _speak_utf_8()
    _prepare_libraries()
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        with _ctrl_c_as_such():
            status = app(standalone_mode=False) or 0
            if status == INTERRUPTED:  # typer swallows Ctrl-C and returns this
                raise KeyboardInterrupt
        sys.exit(status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("Stopped. Nothing half-written is left; the same command carries on.")
        sys.exit(INTERRUPTED)
    except CmrfedError as error:
        _fail(error, str(error), debug)
    except UnicodeEncodeError as error:
        got = str(error.object)[max(0, error.start - 40) : error.end + 40].encode("utf-8", "backslashreplace").decode()
        _fail(error, f"A name is no text in UTF-8. Got: {got}. Do: rename the file or folder.", debug)
    except OSError as error:
        advice = "see that the disk has space and the folder can be written, then run the same command again"
        where = f" ({error.filename})" if error.filename else ""
        _fail(error, f"A file cannot be used{where}. Got: {error.strerror or error}. Do: {advice}.", debug)


def _fail(error: BaseException, text: str, debug: bool) -> None:
    if debug:
        raise error
    leave_error(text, getattr(error, "code", None))
    text = re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text)  # one paragraph, whatever a name holds
    console.print(f"error: {text}", style="bold red" if console.is_terminal else None, markup=False, soft_wrap=True)
    sys.exit(1)
