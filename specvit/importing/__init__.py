"""Files of other programs and of older versions: configurations, sweeps and tables of runs in our words."""
