"""Studies: many runs from one definition, made by workers that pull, resumed by the same command."""
