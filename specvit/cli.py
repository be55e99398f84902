"""The `specvit` command: `specvit train|evaluate|data ...`, each also as `python -m specvit.train` and so on."""

import sys

from specvit import __version__
from specvit.commands import COMMANDS, module_of
from specvit.commands.entry import user_facing
from specvit.utils.errors import ConfigError


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Run the subcommand, or print the list of subcommands."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: specvit COMMAND [...]\n")
        for name, purpose in COMMANDS.items():
            print(f"  specvit {name:<10} {purpose}")
        print("\n`specvit COMMAND --help` explains one; `specvit --version` prints the version.")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"specvit {__version__}")
        return 0
    if name not in COMMANDS:
        from specvit.utils.text import nearest

        remedy = f"{nearest(name, COMMANDS)}there are {', '.join(COMMANDS)}"
        raise ConfigError(f"no command {name!r}", remedy=remedy)
    sys.argv = [f"specvit {name}", *rest]
    return module_of(name).main(rest)


if __name__ == "__main__":
    sys.exit(main())
