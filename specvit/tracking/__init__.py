"""Where metrics go: the run folder's files (always) and the terminal."""
