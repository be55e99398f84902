"""Where workers run: slots of this machine, and SLURM jobs (settings, submission, queue)."""
