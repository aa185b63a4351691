"""`python -m certs_gen`: see `cli`."""

import sys

from tornado_status.runtime.missing_package import explain

if __name__ == "__main__":
    try:
        from certs_gen.cli import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(explain("status-certs", error))
