"""`specvit completion bash|zsh|fish`: print the script that makes a shell complete commands, options, studies, runs.

The scripts hand the typed line to `specvit completion --line LINE`, which prints what its last word may become.
"""

import contextlib
import re
import sys
from collections.abc import Callable

from specvit.commands import COMMANDS, module_of
from specvit.commands.entry import Parser, user_facing
from specvit.study.find import RUNS, STUDIES, runs_in, studies_in

BASH = r"""_specvit() {
  local line="${COMP_LINE:0:COMP_POINT}" word strip= char
  word="${line##*[[:space:]]}"
  for char in = :; do  # bash replaces only what follows these
    [[ $COMP_WORDBREAKS == *"$char"* && $word == *"$char"* ]] && strip="${word%"${word##*"$char"}"}"
  done
  COMPREPLY=()  # no mapfile: the bash of macOS lacks it
  while IFS= read -r word; do COMPREPLY+=("$word"); done < <("$1" completion --line "$line" 2>/dev/null)
  [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
  COMPREPLY=("${COMPREPLY[@]#"$strip"}")
}
complete -o default -F _specvit specvit"""
ZSH = r"""(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_specvit() {
  local -a found=("${(@f)$("${words[1]}" completion --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
  local -a open=(${(M)found:#*[=.]}) whole=(${found:#*[=.]})
  (( $#open )) && compadd -S '' -- $open
  (( $#whole )) && compadd -- $whole
  (( $#open + $#whole )) || _files
}
compdef _specvit specvit"""
FISH = r"""function __specvit
  set -l found (specvit completion --line (commandline -cp | string collect) 2>/dev/null)
  if test (count $found) -gt 0
    printf '%s\n' $found
  else
    __fish_complete_path (commandline -ct)
  end
end
complete -c specvit -f -a '(__specvit)'"""
SAFE = re.compile(r"[\w.=+,@%:/-]+")
"""A word that every shell takes as it is. Folders may have other names, and bash inserts names unquoted."""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Print the script for a shell: `eval "$(specvit completion bash)"`; in fish `specvit completion fish | source`."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.line is None:
        print(SCRIPTS[options.shell])
        return 0
    with contextlib.suppress(Exception):  # where nothing can be offered, the shell completes files
        for word in completions(options.line):
            print(word)
    return 0


def parser() -> Parser:
    """Return the parser of the command."""
    own = Parser(prog="specvit completion", description=main.__doc__)
    own.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), default="bash")
    own.add_argument("--line", help="print what the last word of this line may become (the scripts ask this)")
    return own


def completions(line: str) -> list[str]:
    """Return what the last word of a command line may become; nothing where a file is wanted."""
    _, *words, current = re.split(r"\s+", line.lstrip())
    return [word for word in _offers(words, current) if word.startswith(current) and SAFE.fullmatch(word)]


def _offers(words: list[str], current: str) -> list[str]:
    if not words:
        return [*COMMANDS, "--help", "--version"]
    name, *rest = words
    module = module_of(name) if name in COMMANDS else None
    if name in ("train", "doctor"):
        flags = getattr(module, "FLAGS", ())
        return list(flags) if current.startswith("-") else _overrides(current)
    if module is None:
        return []
    inner, action, seen = module.parser().awaited(rest)
    if current.startswith("-") and not (action and action.option_strings):
        return inner.options()
    if action is None:
        return []
    return list(action.choices) if action.choices else VALUES.get(action.dest, lambda *_: [])(current, seen)


def _overrides(current: str) -> list[str]:
    from specvit.commands.overrides import completions

    return completions(current)


def _studies(current: str, seen: list[str]) -> list[str]:
    return [study.name for study in studies_in(STUDIES)]


def _runs(current: str, seen: list[str]) -> list[str]:
    """Return the runs of the study that was named before, else those in outputs/; hashes where one is begun."""
    own = [study for study in studies_in(STUDIES) if study.name in seen]
    runs = [trial.run for study in own for trial in study.trials()] if own else runs_in(RUNS)
    return [run.path.name for run in runs] + [run.run_id for run in runs if current]


def _runs_and_studies(current: str, seen: list[str]) -> list[str]:
    folders = [folder.name for folder in (RUNS, STUDIES) if folder.is_dir()]
    return _studies(current, []) + _runs(current, []) + folders


def _packaged(name: str) -> Callable[[str, list[str]], list[str]]:
    """Return what offers a packaged file by its name once that is begun; before, the shell lists its own files."""
    return lambda current, seen: [name] if current else []


VALUES: dict[str, Callable[[str, list[str]], list[str]]] = {
    "study": _studies,
    "run": _runs,
    "left": _runs,
    "right": _runs,
    "run_or_study": _runs_and_studies,
    "folder": _runs_and_studies,
    "reference": _packaged("published"),
    "template": _packaged("owner_zh"),
}
"""By the name of an argument, its known values, from the word that is typed and the words before it."""
