"""Where configuration files are. Imports nothing of Hydra."""

from pathlib import Path


def conf_dir() -> Path:
    """Return the bundled `conf/`: inside an installed package, else at the top of the source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_folders() -> list[Path]:
    """Return the folders that are composed from: a user's own `./conf`, if there is one, over the bundled one."""
    own = Path.cwd() / "conf"
    return [own, conf_dir()] if own.is_dir() and not own.samefile(conf_dir()) else [conf_dir()]
