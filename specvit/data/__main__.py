"""`python -m specvit.data`: see `specvit.commands.data`."""

import sys

from specvit.commands.data import main

if __name__ == "__main__":
    sys.exit(main())
