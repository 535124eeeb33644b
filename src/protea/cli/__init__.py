"""The command line: one file a verb. Nothing here imports torch before a verb needs it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `protea` command: an error a user can act on is a message and exit code 2."""
    # Idle OpenMP threads must sleep, not spin: spinning beside any other busy process made a step of a small
    # network 50 times slower (dev/LOG.md). Read when torch loads, so set before anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from protea.cli.app import app
    from protea.errors import ProteaError

    try:
        app(prog_name="protea")
    except ProteaError as error:
        from protea.cli.console import print_error

        print_error(error)
        sys.exit(2)
    except BrokenPipeError:  # `protea models | head`: the reader has gone
        sys.stderr.close()
        sys.exit(0)
