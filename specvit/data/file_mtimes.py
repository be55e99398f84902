"""Size and time of change of a run's data files, to notice one that changed between two attempts at the same run."""

from typing import Any

from specvit.config.schema import DataConfig
from specvit.data.splits import SPLITS, Splits, is_synthetic


def file_stamps(data: DataConfig, splits: Splits) -> dict[str, list[int]]:
    """Return size in bytes and time of change in ns of every file that specvit has not made itself."""
    given = [getattr(splits, split) for split in SPLITS if not is_synthetic(data, split)]
    shards = [shard for view in given for shard in view.shards]
    paths = {path.resolve() for shard in shards for path in (shard.path, shard.flux.path, shard.error.path)}
    facts = {path: path.stat() for path in sorted(paths)}
    return {str(path): [found.st_size, found.st_mtime_ns] for path, found in facts.items()}


def note_of_changes(attempts: list[dict[str, Any]], now: dict[str, list[int]]) -> str:
    """Return the note about files that are not as the latest of `attempts` found them, "" if all are."""
    latest = next((attempt for attempt in reversed(attempts) if "files" in attempt), None)
    if latest is None:
        return ""
    changed = [path for path, stamp in now.items() if latest["files"].get(path, stamp) != stamp]
    if not changed:
        return ""
    more = f" and {len(changed) - 1} more were" if len(changed) > 1 else " was"
    return (
        f"note: {changed[0]}{more} changed or touched since {latest['time']}; labels and sampled spectra are the same. "
        "If spectra were changed, train.rerun=true"
    )
