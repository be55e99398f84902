"""One run, from its configuration to its test score: identity, training, evaluation, outcome."""
