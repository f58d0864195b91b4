"""`python -m dipo.export`: files for other targets from a finished run."""

import sys

from dipo.export_command import main

if __name__ == "__main__":
    sys.exit(main())
