"""The program ``sglp`` and how it ends: 0 if all went well, 2 after an error that the user can mend, 130 after Ctrl-C.

Commands import torch only when they run, so that help and shell completion appear at once.
"""

import os
import sys
from collections.abc import Sequence

import typer

from sglp.commands.compress import compress
from sglp.commands.export import export
from sglp.commands.inspect import inspect
from sglp.errors import SGLPError

EXIT_STATUS = "Exit status: 0, 2 after an error that you can mend (one sentence says how), 130 after Ctrl-C."

app = typer.Typer(
    help="Remove whole layers from a trained network.",
    epilog=EXIT_STATUS,
    no_args_is_help=True,
    rich_markup_mode=None,  # errors stay one line that other programs can read
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (compress, inspect, export):
    app.command(epilog=EXIT_STATUS)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and end the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(arguments, prog_name="sglp")
    except SystemExit as end:  # typer ends the process, also when all went well
        if end.code:
            raise
    except SGLPError as error:
        print(f"sglp {arguments[0]}: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the table, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
