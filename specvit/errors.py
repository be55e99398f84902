"""Errors that reach the user as one sentence: what is wrong, where, and what to do."""


class SpecvitError(Exception):
    """A fault of the input or the environment, never of our own code.

    `what` and `where` say what is wrong and at which key, file or row; `remedy` says what to type or
    change. The entry points print `str(error)` without a traceback and exit with `exit_code`.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        """Join the parts that are given into one sentence."""
        self.what, self.where, self.remedy = what, where, remedy
        sentence = ": ".join(part for part in (where, what) if part) + (f"; {remedy}" if remedy else "")
        super().__init__(sentence if sentence.endswith(("?", ".")) else f"{sentence}.")


class ConfigError(SpecvitError):
    """A key, value or combination that cannot be a run; `where` is the dotted key."""


class DataError(SpecvitError):
    """A file that cannot be trusted; `where` names file, dataset and row."""


class FolderError(SpecvitError):
    """A run folder that is in use, foreign or of another version."""


class CheckpointError(SpecvitError):
    """A checkpoint that is truncated, foreign or from an incompatible configuration."""


class Diverged(Exception):
    """Training broke down: the loss, the gradients or the weights are no longer finite."""


class Interrupted(BaseException):
    """A signal asked the run to stop; not an `Exception`, so that no broad handler swallows it."""

    def __init__(self, signal_name: str, signal_number: int) -> None:
        """Remember which signal it was: the state's cause and the exit code come from it."""
        self.signal_name, self.signal_number = signal_name, signal_number
        super().__init__(signal_name)
