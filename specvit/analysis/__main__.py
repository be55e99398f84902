"""`python -m specvit.analysis`: see `specvit.commands.analysis`."""

import sys

from specvit.commands.analysis import main

if __name__ == "__main__":
    sys.exit(main())
