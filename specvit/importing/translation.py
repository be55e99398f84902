"""What becomes of the names of another file: each taken over, dropped with the reason, asked for, or not known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specvit.importing.read_file import shown
from specvit.importing.values import problem_with, rules_of, value_of
from specvit.utils.errors import ConfigError, Faults

TAKEN, DROPPED, CHANGES, ASKED, UNKNOWN = VERDICTS = (
    "taken over",
    "dropped without effect on results",
    "dropped with an effect on results",
    "asked for",
    "not known and left out",
)
PATIENCE, MONITOR, MODE = (f"train.early_stopping.{name}" for name in ("patience", "monitor", "mode"))


@dataclass
class Translation:
    """Our settings, and a line on each name of the file."""

    settings: dict[str, Any] = field(default_factory=dict)
    """By key; `data` is a group."""
    lines: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {verdict: [] for verdict in VERDICTS})
    """By verdict: a name with its value, and what became of it."""
    several: dict[str, list[Any]] = field(default_factory=dict)
    """The values of keys of which the file lists more than one; `settings` has the first."""
    said: dict[str, str] = field(default_factory=dict)
    """Which name and value of the file set a key."""
    faults: Faults = field(default_factory=Faults)

    def note(self, verdict: str, name: str, raw: Any, text: str) -> None:
        """Add a line on a name of the file."""
        self.lines[verdict].append((f"{name}={shown(name, raw)}", text))

    def imply(self, key: str, value: Any, why: str) -> None:
        """Set a key that the file does not state."""
        self.settings[key] = value
        self.lines[TAKEN].append(("(not stated)", f"{key}={shown(key, value)} ({why})"))

    def take(self, name: str, raw: Any, key: str, value: Any, *, why: str = "", wins: bool = False) -> None:
        """Set a key; a name that contradicts an earlier one is a fault, unless it `wins`."""
        own = f"{name}={shown(name, raw)}"
        if key in self.settings and self.settings[key] != value and not wins:
            what = f"is {shown(name, raw)}, but {self.said[key]} says {key}={shown(key, self.settings[key])}"
            self.faults.append(ConfigError(what, where=name, remedy="correct or remove one of the two"))
            return
        self.settings[key], self.said[key] = value, own
        self.lines[TAKEN].append((own, f"{key}={shown(key, value)}{f' ({why})' * bool(why)}"))

    def give_back(self, key: str) -> list[str]:
        """Forget a key, and return the names of the file that set it."""
        self.settings.pop(key, None)
        names = [own for own, text in self.lines[TAKEN] if text.startswith(f"{key}=")]
        self.lines[TAKEN] = [line for line in self.lines[TAKEN] if not line[1].startswith(f"{key}=")]
        return [own for own in names if own[:1] != "("]

    def try_to_take(self, name: str, raw: Any, key: str, why: str = "") -> None:
        """Set a key to a value of the file, or say why it cannot be; of a list the first."""
        values = listed(key, raw)
        problem = next(filter(None, (problem_with(key, one) for one in values)), "" if values else "has no value")
        if len(values) > 1 and key.startswith("tracking."):
            problem = "takes one value"
        if problem:
            self.note(UNKNOWN, name, raw, f"{key} {problem}")
            return
        own = [value_of(key, one) for one in values]
        self.take(name, raw if len(own) == 1 else values[0], key, own[0], why=why)
        if len(own) > 1:
            self.several[key] = own
            text = f"{len(own)} values make {len(own)} runs; the file has the first, {key}={shown(key, own[0])}"
            self.note(ASKED, name, raw, text)

    def messages(self, verdicts: Sequence[str] = VERDICTS) -> list[str]:
        """Return the lines of verdicts, each below its heading; names that have an answer in common share a line."""
        said = []
        for verdict in [one for one in verdicts if self.lines[one]]:
            arrow = " -> " if verdict == TAKEN else ": "
            said += [f"{verdict}:", *(f"  {line}" for line in _joined(self.lines[verdict], arrow))]
        return said

    def counts(self) -> str:
        """Return how many names have which verdict."""
        own = {verdict: {name for name, _ in lines if name[:1] != "("} for verdict, lines in self.lines.items()}
        return ", ".join(f"{len(names)} {verdict}" for verdict, names in own.items() if names)


def _joined(pairs: Sequence[tuple[str, str]], arrow: str) -> list[str]:
    """Return lines of names with their answers; a name with several and an answer of several are on one line."""
    by_name: dict[str, list[str]] = {}
    for own, text in pairs:
        by_name.setdefault(own, []).append(text)
    by_text: dict[str, list[str]] = {}
    for own, texts in by_name.items():
        by_text.setdefault(", ".join(texts), []).append(own)
    return [text if names == [text] else f"{', '.join(names)}{arrow}{text}" for text, names in by_text.items()]


def listed(key: str, raw: Any) -> list[Any]:
    """Return the values that a file gives a key: a list's, where the key itself does not take lists."""
    takes_lists = "tuple" in str(rules_of(key)[0])
    return list(raw) if isinstance(raw, list) and not takes_lists else [raw]
