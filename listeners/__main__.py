"""`python -m listeners`: see `cli`."""

import sys

from tornado_status.runtime.missing_package import explain

if __name__ == "__main__":
    try:
        from listeners.cli import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(explain("status-listener", error))
