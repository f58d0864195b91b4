"""`python -m dipo.verify` is `dipo verify`: have the target programs read the files that dipo wrote."""

import sys

from dipo.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
