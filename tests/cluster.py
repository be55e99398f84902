"""A real SLURM of this machine alone: a controller, accounting and two nodes, in a folder that goes with it.

Needs Debian's munge, slurmctld, slurmd, slurm-client, slurmdbd and mariadb-server-core, and no root once they are
there. Everything listens on loopback, on ports of its own.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES, CPUS, GPUS = 2, 4, 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "srun")
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SYSTEM_TABLES = "/usr/share/mysql/mysql_system_tables.sql"
CONF = """
ClusterName=specvit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again when its old credential has expired: after two minutes if nothing, or less than five
# seconds, is said.
AuthInfo=socket={place}/munge.socket,cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=5
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=10
TCPTimeout=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=00:00:00
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounts}
AccountingStoragePass={place}/munge.socket
{nodes}
PartitionName=DEFAULT Nodes=ALL DefMemPerCPU=100 MaxTime=1-00:00:00 DefaultTime=10 State=UP
PartitionName=main Default=YES PriorityTier=10 GraceTime=20
PartitionName=urgent PriorityTier=100 PreemptMode=OFF
"""
ACCOUNTS = """
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounts}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StorageLoc=accounts
LogFile={place}/slurmdbd.log
PidFile={place}/slurmdbd.pid
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


class Cluster:
    """One cluster; `environment` is what its commands need to find it."""

    def __init__(self, place: Path) -> None:
        """Nothing runs yet."""
        self.place = place
        self.callbacks = dict(
            zip(("port", "accounts", "database", *map(str, range(NODES))), free_ports(3 + NODES), strict=True)
        )
        self.environment = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(place / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring everything up; raises where it does not come."""
        self._configure()
        self._spawn("munged", "--foreground", "--force", f"--key-file={self.place}/munge.key",
                    f"--socket={self.place}/munge.socket", f"--pid-file={self.place}/munged.pid",
                    f"--log-file={self.place}/munged.log", f"--seed-file={self.place}/munged.seed")  # fmt: skip
        self._until(lambda: self.works("munge", "-n", "-S", f"{self.place}/munge.socket"))
        self._start_database()
        self._spawn("slurmdbd", "-D")
        self._until(lambda: self.works("sacctmgr", "-n", "show", "cluster"))
        self.run("sacctmgr", "-i", "add", "cluster", "specvit")
        self.start_controller()
        for number in range(NODES):
            self.start_node(number)
        self._until(lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("\n") == NODES)

    def stop(self) -> None:
        """End everything that runs in it."""
        self.works("scancel", f"--user={getpass.getuser()}")
        for _ in range(100):
            if not self.works("squeue", "-h") or not self.run("squeue", "-h", "-t", "R,CG,S"):
                break
            time.sleep(0.1)
        for daemon in reversed(self.daemons):
            daemon.kill()
            daemon.wait()
        for step in self.steps():
            with contextlib.suppress(OSError):
                os.kill(step, signal.SIGKILL)

    def steps(self) -> list[int]:
        """Return the processes that look after jobs."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if b"slurmstepd" in (folder / "cmdline").read_bytes() and self._is_ours(folder):
                    found.append(int(folder.name))
        return found

    def start_controller(self) -> None:
        """Start slurmctld."""
        self.controller = self._spawn("slurmctld", "-D")
        self._until(lambda: self.works("scontrol", "ping"))

    def start_node(self, number: int) -> None:
        """Start a node's daemon; `nodes` has it by its node's name."""
        (self.place / "spool" / f"node{number}").mkdir(parents=True, exist_ok=True)
        self.nodes[f"node{number}"] = self._spawn("slurmd", "-D", "-N", f"node{number}")

    def run(self, *words: str) -> str:
        """Return what one of SLURM's commands says; raises if it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def works(self, *words: str) -> bool:
        """Say whether a command ends well."""
        return subprocess.run(words, env=self.environment, capture_output=True, timeout=60).returncode == 0

    def queue(self) -> dict[str, str]:
        """Return the state of each job that waits or runs."""
        lines = self.run("squeue", "-h", "--array", "-o", "%i %T").splitlines()
        return {job: state for job, state in map(str.split, lines)}

    def restarts(self, job: str) -> int:
        """Return how often a job was requeued."""
        said = self.run("scontrol", "show", "job", job)
        return int(said.partition("Restarts=")[2].split()[0])

    def _configure(self) -> None:
        for name in ("state", "spool", "database"):
            (self.place / name).mkdir()
        self.place.chmod(0o755)  # munged insists
        (self.place / "munge.key").write_bytes(os.urandom(128))
        (self.place / "munge.key").chmod(0o600)
        nodes = "\n".join(
            f"NodeName=node{n} NodeHostname=node{n} NodeAddr=127.0.0.1 Port={self.callbacks[str(n)]} "
            f"CPUs={CPUS} RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
            for n in range(NODES)
        )
        host = socket.gethostname().partition(".")[0]
        facts = {"place": self.place, "user": getpass.getuser(), "host": host, "nodes": nodes, **self.callbacks}
        (self.place / "slurm.conf").write_text(CONF.format(**facts))
        (self.place / "slurmdbd.conf").write_text(ACCOUNTS.format(**facts))
        (self.place / "slurmdbd.conf").chmod(0o600)
        self._make_gpus()

    def _make_gpus(self) -> None:
        """Make devices that stand for GPUs: only with one does SLURM set CUDA_VISIBLE_DEVICES; nobody opens them."""
        lines = []
        for number in range(GPUS):
            device = self.place / f"nvidia{number}"
            try:
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            except PermissionError:  # not root: a terminal will do
                device = Path(f"/dev/tty{number}")
            lines.append(f"NodeName=node[0-{NODES - 1}] Name=gpu File={device}\n")
        (self.place / "gres.conf").write_text("".join(lines))

    def _start_database(self) -> None:
        own = ["--no-defaults", f"--datadir={self.place}/database", f"--user={getpass.getuser()}"]
        tables = "create database mysql;\nuse mysql;\n" + Path(SYSTEM_TABLES).read_text()
        mariadb = shutil.which("mariadbd", path=SEARCH)
        subprocess.run([mariadb, *own, "--bootstrap"], input=tables, text=True, check=True, capture_output=True)
        self._spawn("mariadbd", *own, "--bind-address=127.0.0.1", f"--port={self.callbacks['database']}",
                    f"--socket={self.place}/database.socket", "--skip-grant-tables", "--skip-log-bin",
                    "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
                    "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0")  # fmt: skip
        self._until(lambda: _listens(self.callbacks["database"]))

    def _spawn(self, program: str, *words: str) -> "subprocess.Popen[bytes]":
        with open(self.place / f"{program}.out", "ab") as out:
            daemon = subprocess.Popen(
                [shutil.which(program, path=SEARCH) or program, *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.daemons.append(daemon)
        return daemon

    def _until(self, answers: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not answers():
            assert time.monotonic() < end, "\n".join(path.read_text()[-2000:] for path in self.place.glob("*.log"))
            time.sleep(0.1)

    def _is_ours(self, process: Path) -> bool:
        return f"SLURM_CONF={self.place}".encode() in (process / "environ").read_bytes()


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Run a cluster within the block, in a folder whose name is short: sockets allow 108 characters."""
    place = Path(tempfile.mkdtemp(prefix="svs-", dir="/tmp"))
    cluster = Cluster(place)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(place, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return ports on which nobody listens."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
