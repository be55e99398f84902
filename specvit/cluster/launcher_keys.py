"""Keys of a launcher, refused with our name for those of Hydra's submitit and joblib launchers."""

from collections.abc import Mapping
from typing import Any

from specvit.config.fields import Builder, spelt
from specvit.utils.errors import ConfigError

OTHER_KEYS = {
    "timeout_min": 'hydra.launcher.time="4:00:00", in hours',
    "mem_gb": "hydra.launcher.memory=16G",
    "mem_per_cpu": "hydra.launcher.memory=16G, of the whole job",
    "mem_per_gpu": "hydra.launcher.memory=16G, of the whole job",
    "gpus_per_node": "hydra.launcher.gpus_per_job",
    "gpus_per_task": "hydra.launcher.gpus_per_job",
    "cpus_per_task": "hydra.launcher.cpus_per_job",
    "array_parallelism": "hydra.launcher.jobs",
    "n_jobs": "hydra.launcher.slots",
    "additional_parameters": "+hydra.launcher.extra.NAME=VALUE",
    "gres": "+hydra.launcher.extra.gres=VALUE with hydra.launcher.gpus_per_job=0",
    "exclude": "+hydra.launcher.extra.exclude=VALUE",
}
"""What to write for keys of Hydra's plugins."""
NEEDLESS = (
    "submitit_folder",
    "max_num_timeout",
    "tasks_per_node",
    "nodes",
    "name",
    "signal_delay_s",
    "stderr_to_stdout",
)


class LauncherBuilder(Builder):
    """Refuses a key of another launcher with what to write instead."""

    def refuse(self, plain: dict[str, Any], name: str, prefix: str, keys: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for an unknown key."""
        if name in OTHER_KEYS and (name != "n_jobs" or "slots" in keys):
            raise ConfigError("unknown key", where=spelt(prefix, name), remedy=f"write {OTHER_KEYS[name]}")
        if name in NEEDLESS:
            remedy = "leave it out: a job is one process on one node, and specvit keeps its logs, signals and requeues"
            raise ConfigError("unknown key", where=spelt(prefix, name), remedy=remedy)
        super().refuse(plain, name, prefix, keys)


build = LauncherBuilder().build
