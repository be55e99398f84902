"""The `specvit` command: `specvit train|evaluate|data ...`, each also as `python -m specvit.train` and so on."""

import importlib
import sys

from specvit import __version__
from specvit.commands.entry import user_facing
from specvit.utils.errors import ConfigError

COMMANDS = {
    "train": (
        "specvit.commands.train",
        "one run: spectra -> trained model -> test score; with sweeps=NAME a study, with -m a plain grid",
    ),
    "sweep": ("specvit.commands.sweep", "the runs of a study: status, table, why, diff, retry, cancel"),
    "evaluate": ("specvit.commands.evaluate", "score a finished run again, on any file"),
    "analysis": (
        "specvit.commands.analysis",
        "from finished runs: ceiling (the best that a test set allows), scaling, ablation, attention …",
    ),
    "track": ("specvit.commands.track", "send MLflow the records that it lacks from run folders"),
    "doctor": ("specvit.commands.doctor", "--cluster: can jobs be submitted, see a GPU, write, lock and save in time"),
    "data": (
        "specvit.commands.data",
        "generate built-in spectra, inspect files, convert other formats",
    ),
}

COMPLETION = """\
_specvit() {
  local words=("${COMP_WORDS[@]}") current="${COMP_WORDS[COMP_CWORD]}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "COMMANDS completion" -- "$current"))
  elif [ "${words[1]}" = train ]; then
    compopt -o nospace 2>/dev/null
    local line="specvit ${COMP_LINE#*train }"
    COMPREPLY=($(COMP_LINE="$line" COMP_POINT=${#line} specvit train -sc query=bash 2>/dev/null))
  else
    compopt -o default 2>/dev/null
    COMPREPLY=()
  fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -F _specvit specvit
"""


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Run the subcommand, or print the list of subcommands."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: specvit COMMAND [...]\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  specvit {name:<10} {purpose}")
        print('  specvit completion bash   completion for your shell: eval "$(specvit completion bash)"')
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"specvit {__version__}")
        return 0
    if name == "completion":
        if rest not in ([], ["bash"], ["zsh"]):
            raise ConfigError(
                f"knows bash and zsh, not {' '.join(rest)}", where="completion", remedy="name one of them"
            )
        print(COMPLETION.replace("COMMANDS", " ".join(COMMANDS)), end="")
        return 0
    if name not in COMMANDS:
        from specvit.config.suggestions import nearest

        remedy = f"{nearest(name, COMMANDS)}there are {', '.join(COMMANDS)}"
        raise ConfigError(f"no command {name!r}", remedy=remedy)
    sys.argv = [f"specvit {name}", *rest]
    return importlib.import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
