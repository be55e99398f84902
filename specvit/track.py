"""`python -m specvit.track`: see `specvit.commands.track`."""

import sys

from specvit.commands.track import main

if __name__ == "__main__":
    sys.exit(main())
