"""Spectra: shards (HDF5), views (subsets), labels (scalers), noise, resident (device batches), builtin, inspect."""
