"""A server as small as one can be that has a child: python small_server.py PORT [HOW...]

It says the numbers of both processes and the key in SMALL_KEY. HOW: `deaf` ignores SIGTERM, `stray` gives the child a
group of its own, `dies` ends with an error, `silent` never answers.
"""

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Answers(BaseHTTPRequestHandler):
    """Answers every request with nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(204)
        self.end_headers()


def main(port: int, how: list[str]) -> None:
    """Serve."""
    if "deaf" in how:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    waits = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"]
    child = subprocess.Popen(waits, start_new_session="stray" in how)
    print("pids", os.getpid(), child.pid, flush=True)
    print("key", os.environ.get("SMALL_KEY"), flush=True)
    if "dies" in how:
        sys.exit("RuntimeError: no such model\n\x1b[1m-----\x1b[0m\nDuring handling of the above, more was said")
    if "silent" in how:
        time.sleep(300)
    HTTPServer(("127.0.0.1", port), Answers).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
