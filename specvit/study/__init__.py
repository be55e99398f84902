"""Studies: many runs from one definition, executed by workers, resumed by the same command."""
