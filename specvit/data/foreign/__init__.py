"""Spectra of others made into shards: any of the usual files read, put on the run's pixels, given errors and labels."""
