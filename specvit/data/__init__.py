"""Spectra: HDF5 shards, views (subsets and splits), labels, noise, and batches on the device."""
