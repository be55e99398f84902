"""`python -m specvit.evaluate`: see `specvit.commands.evaluate`."""

import sys

from specvit.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
