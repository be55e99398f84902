"""Used by every package: errors, files, processes, text, seeds, units. Imports nothing else of specvit."""
