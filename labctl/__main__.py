"""The command ``labctl``, and ``python -m labctl``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line of this process and exit with its status."""
    # Until there is something to clean up: Python's own answer to Ctrl-C is a traceback out of the middle of an import.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda number, frame: os._exit(130))
    from labctl.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
