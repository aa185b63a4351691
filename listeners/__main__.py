"""`python -m listeners`: see `cli`."""

import sys

from listeners.cli import main

if __name__ == "__main__":
    sys.exit(main())
