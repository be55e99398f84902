"""What every package may use: errors, files, text, seeds, units. Imports nothing else of specvit."""
