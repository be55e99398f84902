"""`python -m specvit.doctor`: see `specvit.commands.doctor`."""

import sys

from specvit.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
