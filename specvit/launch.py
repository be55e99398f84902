"""Names that SLURM jobs submitted by version 0.1 hold: submitit pickled the call and its module."""

import sys

from specvit.cluster import probe, submit

sys.modules |= {f"{__name__}.probe": probe, f"{__name__}.submit": submit}
