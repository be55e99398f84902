"""Where metrics go: the files of the run folder, the terminal, figures, and MLflow."""
