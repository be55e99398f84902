"""The frame around every command."""

import subprocess
import sys

# A library that is interrupted in its exit function, as torch's may be when Ctrl-C comes a moment after the end.
INTERRUPTED_AT_EXIT = """
import atexit, os, signal, sys
from specvit.commands.entry import user_facing
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with Ctrl-C ignored
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.exit(user_facing(lambda arguments: 0)({arguments}))
"""


def ended(arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", INTERRUPTED_AT_EXIT.format(arguments=arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


def test_ctrl_c_while_python_shuts_down_prints_no_traceback() -> None:
    assert "KeyboardInterrupt" in ended("[]").stderr  # a call from Python leaves the signal to its caller
    assert ended("").stderr == ""
