"""`python -m specvit.sweep`: see `specvit.commands.sweep`. Also a name that SLURM jobs of version 0.1 hold."""

import sys

from specvit.commands.sweep import main

sys.modules["specvit.sweep.__main__"] = sys.modules[__name__]

if __name__ == "__main__":
    sys.exit(main())
