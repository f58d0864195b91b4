"""`python -m dipo.export` is `dipo export`: files for other targets from a finished run."""

import sys

from dipo.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
