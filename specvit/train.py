"""`python -m specvit.train`: see `specvit.commands.train`."""

import sys

from specvit.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
