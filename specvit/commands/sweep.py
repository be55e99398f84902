"""`python -m specvit.sweep list|status|table|why|diff|retry|cancel`: manage studies. Does not import torch."""

import os
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from specvit.cluster import queue
from specvit.commands.answer import Answer, add_json, refuse_beside
from specvit.commands.entry import Parser, user_facing
from specvit.run_folder.folder import ALIVE, hostname, now
from specvit.run_folder.verdict import EXPLODED_CAUSE
from specvit.study.diagnose import diagnose, diagnosis_lines, diff_lines, difference
from specvit.study.find import STUDIES, choose_trials, find_run, find_study
from specvit.study.job_log import jobs_in_queue, jobs_of_trials, read_job_log, waiting_jobs
from specvit.study.listing import study_list
from specvit.study.status import refused_causes, refused_lines, status_lines, study_status
from specvit.study.store import CANCELLED, WAITING, StudyFolder, Trial, command_of
from specvit.study.table import render, table_rows
from specvit.study.trial_queue import FAILED_STATES, group_counts
from specvit.utils.files import is_locked

WATCH_SECONDS = 2.0


@user_facing
def main(arguments: list[str] | None = None) -> int | Answer:
    """Look after studies: watch, compare, explain, retry, cancel."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.command == "work":
        return _work(StudyFolder(options.study_path), options)
    if options.command == "list":
        return _print(study_list(STUDIES))
    if options.command == "why":
        return _why_facts(options.run_or_study) if options.json else _why(options.run_or_study)
    if options.command == "diff":
        left, right = (find_run(name) for name in (options.left, options.right))
        return (
            Answer("sweep.diff", asdict(difference(left, right))) if options.json else _print(diff_lines(left, right))
        )
    study = find_study(options.study)
    if options.command == "status":
        if options.json:
            refuse_beside(["--watch"] if options.watch else [])
            return Answer("sweep.status", study_status(study).facts())
        return _status(study, watch=options.watch)
    if options.command == "table":
        return _table(study, options)
    if options.command == "retry":
        return _retry(study, options.run)
    return _cancel(study, options.run)


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="specvit sweep", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, purpose: str) -> Parser:
        return commands.add_parser(name, help=purpose, description=purpose)

    command("list", "studies to run and studies begun: how many runs, how far they are, which question")
    status = command("status", "counts, running trials with their health, failures with their cause")
    status.add_argument("study")
    status.add_argument("--watch", action="store_true", help="repeat until no run is active")
    add_json(status)
    table = command("table", "mean, spread and number of runs for each setting")
    table.add_argument("study")
    table.add_argument("--metric", help="test_r2, val_mae, train_seconds, escape_step, ...")
    table.add_argument("--by", help="group by these of the varied keys only, between commas")
    table.add_argument("--style", choices=("text", "csv", "markdown"), help="default: text")
    add_json(table)
    why = command("why", "a run's cause, remedy, curves and gradient norms by part; of a study, each failure")
    why.add_argument("run_or_study", metavar="run", help="a run's folder, name or hash, or a study")
    add_json(why)
    diff = command("diff", "keys and scores in which two runs differ")
    diff.add_argument("left", help="a run's folder, name or hash")
    diff.add_argument("right", help="another")
    add_json(diff)
    for name, purpose in (("retry", "try failed runs again"), ("cancel", "stop a study, or some of its runs")):
        subparser = command(name, purpose)
        subparser.add_argument("study")
        subparser.add_argument("run", nargs="*", help="names or hashes; none: all")
    work = commands.add_parser("work", help="make a study's runs in this process (a launcher starts this)")
    work.add_argument("study_path", type=Path)
    work.add_argument("--slot", type=int, default=0)
    work.add_argument("--trial", type=int, help="make this one alone")
    work.add_argument("--patience", type=float, default=1.0, help="seconds for an older worker to leave the slot")
    return parser


def _work(study: StudyFolder, options: Namespace) -> int:
    from specvit.study.worker import work

    os.chdir(study.about()["cwd"])
    return work(study, options.slot, trial=options.trial, patience=options.patience)


def _status(study: StudyFolder, *, watch: bool) -> int:
    while True:
        _print(status_lines(study))
        at_work = study.busy_slots() or any(trial.run.state() in ALIVE for trial in study.trials())
        if not watch or not (at_work or waiting_jobs(study, study.about())):
            return 0
        time.sleep(WATCH_SECONDS)
        print()


def _table(study: StudyFolder, options: Namespace) -> int | Answer:
    by = [name.strip() for name in options.by.split(",")] if options.by else None
    if options.json:
        refuse_beside(["--style"] if options.style else [])
    metric, rows = table_rows(study, options.metric, by)
    if options.json:
        return Answer("sweep.table", {"study": study.name, "metric": metric, "rows": [row.facts() for row in rows]})
    return _print([render(metric, rows, options.style or "text")])


def _why(name: str) -> int:
    if not _is_study(name):
        return _print(diagnosis_lines(*find_run(name)))
    study = find_study(name)
    states = [(trial, study.state(trial)) for trial in study.trials()]
    failed = [trial for trial, state in states if state in FAILED_STATES]
    if not failed:
        print(f"no run of {study.name} failed")
    _print(refused_lines(study))
    for trial in failed:
        _print([*diagnosis_lines(trial.run, trial), ""])
    unlearnt = (trial for trial, state in states if state == "plateau")
    _print(f"{trial.name}: plateau: {trial.run.status().get('cause') or 'cause unknown'}" for trial in unlearnt)
    return _print([group_counts(state for _, state in states)])


def _why_facts(name: str) -> Answer:
    """Return the diagnosis of a run; of a study those of each run that failed or learnt nothing, failures first."""
    if not _is_study(name):
        facts = {"study": None, "states": None, "refused": None, "runs": [asdict(diagnose(*find_run(name)))]}
        return Answer("sweep.why", facts)
    study = find_study(name)
    states = [(trial, study.state(trial)) for trial in study.trials()]
    chosen = [trial for group in (FAILED_STATES, ("plateau",)) for trial, state in states if state in group]
    facts = {"study": study.name, "states": Counter(state for _, state in states), "refused": refused_causes(study)}
    return Answer("sweep.why", {**facts, "runs": [asdict(diagnose(trial.run, trial)) for trial in chosen]})


def _is_study(name: str) -> bool:
    return any((place / "study.json").exists() for place in (Path(name), STUDIES / name))


def _retry(study: StudyFolder, names: list[str]) -> int:
    states = [(trial, study.state(trial)) for trial in choose_trials(study, names)]
    chosen = [trial for trial, state in states if state in FAILED_STATES]
    for trial in chosen:
        study.request_retry(trial)
    if unlearnt := sum(state == "plateau" for _, state in states):
        print(f"{unlearnt} learnt nothing, which another try would not change")
    if not chosen:
        print("nothing failed")
        return 0
    print(f"{len(chosen)} run{'s' if len(chosen) != 1 else ''} will be tried again")
    causes = [(trial.end or {}).get("cause") or trial.run.status().get("cause", "") for trial in chosen]
    if exploded := sum(cause.startswith(EXPLODED_CAUSE) for cause in causes):
        print(f"{exploded} of them exploded and will again: `specvit sweep why {study.name}` names other settings")
    on_cluster = (study.about().get("launcher") or {}).get("kind") == "slurm"  # where each job makes its own run
    served = is_locked(study.file("driver.lock")) if on_cluster else study.busy_slots()
    print("a worker takes them up" if served else f"start them with: {command_of(study)}")
    return 0


def _cancel(study: StudyFolder, names: list[str]) -> int:
    """Stop a study, which its command resumes, or single runs, which stay cancelled until retried."""
    about = study.about()
    jobs = jobs_of_trials(study, about, jobs_in_queue(study, about))
    if not names:
        study.file("cancelled").touch()
        queue.cancel([job.id for job in waiting_jobs(study, about)])
    stopped, kept = 0, 0
    for trial in choose_trials(study, names):
        if trial.run.state() in ALIVE:
            stopped += _stop(study, trial, alone=bool(names))
        elif names and study.state(trial) == WAITING:
            queue.cancel([job.id for number, job in jobs.items() if number == trial.number and job.waits])
            with study.claim(trial.number) as mine:
                if mine:
                    study.clear_retry(trial.number)
                    study.write_trial(replace(trial, end={"state": "cancelled", "cause": CANCELLED, "time": now()}))
                    kept += 1
                else:  # a worker that still reads its data checks for this when its run starts
                    study.request_cancel(trial.number)
                    stopped += 1
    waiting = f", {kept} waiting cancelled" if kept else ""
    print(f"{stopped} asked to save and stop{waiting}")
    print(
        f"`specvit sweep retry {study.name}` takes them up again" if names else f"resume it with: {command_of(study)}"
    )
    return 0


def _stop(study: StudyFolder, trial: Trial, *, alone: bool) -> bool:
    """Request that a run stops; return True if a worker of this study has it and will see the request."""
    status = trial.run.status()
    if not study.is_claimed(trial.number):
        here = status.get("host") == hostname()
        place = "made outside of this study" if here else f"running on {status.get('host')}"
        print(f"{trial.name} is {place}; cancel it there", file=sys.stderr)
        return False
    if alone:
        study.request_cancel(trial.number)
    elif (job := status.get("job")) and job in read_job_log(study).job_of_slot.values():
        queue.cancel([job], signal="TERM")  # another node may see the `cancelled` file a minute later
    return True


def _print(lines: Iterable[str]) -> int:
    for line in lines:
        print(line, flush=True)
    return 0
