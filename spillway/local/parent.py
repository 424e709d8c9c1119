"""Children that end with their parent: whoever starts a process hands it a pipe as standard input
and never writes to it. However the parent ends, kill -9 included, the system closes the pipe.
"""

from __future__ import annotations

import os
import threading


def exit_with_parent() -> None:
    """Ends this process (status 0, no clean-up) as soon as standard input reaches its end."""
    threading.Thread(target=_wait, name="parent", daemon=True).start()


def _wait() -> None:
    # Not through sys.stdin: a thread that waits in its buffer makes a normal end of the
    # interpreter fatal.
    while os.read(0, 4096):
        pass
    # Not sys.exit: only the main thread may end the interpreter in an orderly way.
    os._exit(0)
