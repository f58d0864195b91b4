"""`python -m dipo.launch` is `dipo`: the command line that quantizes a model."""

import sys

from dipo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
