"""The runs of a study's best setting: all its seeds and folds that learnt. Reads run folders alone."""

from specvit.run_folder.folder import RunFolder
from specvit.run_folder.verdict import LEARNT
from specvit.study.results import has_direction, lower_is_better, rank
from specvit.study.schema import ESCAPED, Table
from specvit.study.store import StudyFolder
from specvit.study.table import setting_text, table_rows
from specvit.utils.errors import FolderError

TEST_R2 = "test_r2"


def best_runs(study: StudyFolder) -> tuple[list[RunFolder], str]:
    """Return the runs of the best setting that learnt, and a sentence on the choice; raises `FolderError` without any.

    Best by the metric that a search searched by, or that of the study's table, if that has a better end and measures
    the result; else by test R².
    """
    about = study.about()
    asked = about.get("metrics") or {}
    metric = next(iter(asked), Table(**about["table"]).metric)
    if metric in (ESCAPED, "train_seconds") or not has_direction(metric, asked):
        metric = TEST_R2
    lower = lower_is_better(metric, asked)
    _, rows = table_rows(study, metric)
    rows = [row for row in rows if row.values]
    if not rows:
        remedy = "name a run, or wait for the study"
        raise FolderError("has no finished run that learnt", where=str(study.path), remedy=remedy)
    best = min(
        rows, key=lambda row: rank(metric, sum(row.ranked) / len(row.ranked), len(row.values), row.failed, lower=lower)
    )
    trials = {trial.run_id: trial for trial in study.trials() if trial.run_id in best.run_ids}
    learnt = [trial.run for trial in trials.values() if study.state(trial) in LEARNT]
    setting = setting_text({key: value for key, value in best.factors.items() if value is not None})
    mean = sum(best.values) / len(best.values)
    left = len(trials) - len(learnt)
    others = f"; {left} more run(s) of it did not finish or learn" if left else ""
    names = ", ".join(run.path.name for run in learnt)
    of = f"best setting of {study.name} by {metric}: {setting or 'its only one'} ({mean:.4g}, {len(learnt)} run(s))"
    return learnt, f"{of}: {names}{others}"
