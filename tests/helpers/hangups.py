"""How a process that a test starts takes the end of a terminal."""

from __future__ import annotations

import signal


def hear_hangups() -> None:
    """Let SIGHUP end this process, as `preexec_fn`: whoever runs the tests may ignore it, as nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
