"""python -m certs_gen"""

from __future__ import annotations

import sys

from certs_gen.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m certs_gen"))
