"""`python -m dipo` is `dipo`."""

import sys

from dipo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
