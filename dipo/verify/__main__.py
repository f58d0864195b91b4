"""`python -m dipo.verify` is `dipo verify`: have the programs read what dipo wrote that are to read it."""

import sys

from dipo.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
