"""One run, from its configuration to its test score: training, evaluation, outcome. Its id: run_folder.identity."""
