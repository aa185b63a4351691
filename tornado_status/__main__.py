"""`python -m tornado_status`."""

import sys

from tornado_status.cli import main

if __name__ == "__main__":
    sys.exit(main())
