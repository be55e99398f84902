"""Files whose author means harm: what is hidden in them makes a canary file when it is run."""

import os
from pathlib import Path


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        """`place` is the folder."""
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)
