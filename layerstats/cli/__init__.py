"""The command line, a skin: each command parses, calls one library function and prints.

Data goes to stdout, progress and errors to stderr. A user's mistake is one line and an exit code:
0 ok, 1 internal, 2 usage, 3 not found, 4 corrupt, 5 network, 6 something skipped under --strict,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from layerstats.cli import (
    checkpoints,
    demo,
    doubts,
    exports,
    memory,
    report,
    schedules,
    statistics,
    training,
)
from layerstats.errors import LayerstatsError

__all__ = ["app", "run"]

app = typer.Typer(
    name="layerstats",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Per-layer statistics of LLM checkpoints, and layer-sampling schedules made from them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"layerstats {version('layerstats')}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


for _module in (
    checkpoints,
    statistics,
    doubts,
    schedules,
    exports,
    training,
    memory,
    report,
    demo,
):
    _module.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but a bug of ours shows a stack trace.

    Examples
    --------
    >>> run(["inspect", "no/such/checkpoint", "--json"])
    3
    """
    try:
        code = typer.main.get_command(app).main(
            list(arguments), "layerstats", standalone_mode=False
        )
        sys.stdout.flush()
    except LayerstatsError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as leaving:  # what click makes of a broken pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except Exception as error:
        shown = getattr(error, "format_message", None)
        if shown is not None:
            return _fail(f"{shown()} (try --help)", 2)
        if os.environ.get("LAYERSTATS_DEBUG"):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(
            f"internal error, please report it: {text} (LAYERSTATS_DEBUG=1 shows where)", 1
        )
    # typer turns Ctrl-C into this code without a word.
    if code == 130:
        return _fail(
            "interrupted; an unfinished measurement or training run goes on with --resume", 130
        )
    return int(code or 0)


def _reader_left() -> int:
    """Whoever read stdout has left (`| head`): no error, and nothing more to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    print("layerstats: " + " ".join(message.split()), file=sys.stderr)
    return code
