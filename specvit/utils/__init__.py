"""Used by every package: errors, files, processes, text, seeds, quantities. Imports nothing else of specvit."""
