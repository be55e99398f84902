"""What every entry point does with an error: one sentence on stderr and an exit code, no traceback."""

import functools
import sys
from collections.abc import Callable

from specvit.errors import Interrupted, SpecvitError


def user_facing(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap an entry point so that a user's mistake ends in one sentence and a signal in its usual exit code."""

    @functools.wraps(main)
    def wrapped(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except SpecvitError as error:
            print(f"specvit: {error}", file=sys.stderr)
            return error.exit_code
        except Interrupted as stop:
            print(
                f"specvit: stopped by {stop.signal_name}; the same command goes on.",
                file=sys.stderr,
            )
            return 128 + stop.signal_number
        except BrokenPipeError:
            sys.stderr.close()
            return 141
        except OSError as problem:
            if problem.filename is None:
                raise
            print(f"specvit: {problem.filename}: {(problem.strerror or str(problem)).lower()}.", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("specvit: stopped by Ctrl-C.", file=sys.stderr)
            return 130

    return wrapped
