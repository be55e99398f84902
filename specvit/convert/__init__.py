"""Other formats to shards: read spectra from common files, resample them to the pixels of a run, add errors, labels."""
