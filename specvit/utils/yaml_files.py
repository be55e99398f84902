"""YAML files: records that are read back, and a guard against aliases that never end.

Apart from `specvit.utils.files`, which a GPU machine without PyYAML imports, too.
"""

import itertools
from pathlib import Path
from typing import Any

import yaml

from specvit.utils.errors import FolderError

MAX_VALUES = 100_000
"""That the aliases of a YAML file may stand for, keys included."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML record; raises `OSError` for a file that cannot be read, and `FolderError` for a damaged one."""
    try:
        text = path.read_text(encoding="utf-8")
        check_aliases(text)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # not UTF-8, or a number of thousands of digits
        raise FolderError("is damaged", where=str(path), remedy="train it again") from problem
    if not isinstance(found, dict):
        raise FolderError("is damaged: it holds no keys with values", where=str(path), remedy="train it again")
    return found


def check_aliases(text: str) -> None:
    """Raise `yaml.YAMLError` for YAML with aliases that contain themselves or stand for more than `MAX_VALUES` values.

    Twenty-five lines of aliases of aliases are 33 million values to whatever copies or prints them.
    """
    if "*" not in text:
        return
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # what an alias within the node itself counts
            parts = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size, parts))
        if sizes[id(node)] > MAX_VALUES:
            what = f"an alias stands for itself or for more than {MAX_VALUES:,} values"
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {what}")
        return sizes[id(node)]

    if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
        size(root)
