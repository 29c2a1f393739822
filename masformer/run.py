"""`accelerate launch -m masformer.run ...` is `accelerate launch -m masformer run ...`."""

from __future__ import annotations

import sys

from masformer.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
