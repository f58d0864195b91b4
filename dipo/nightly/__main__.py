"""`python -m dipo.nightly` is `dipo nightly`: a list of jobs, checked by gates and compared with the night before."""

import sys

from dipo.cli.nightly import main

if __name__ == "__main__":
    sys.exit(main())
