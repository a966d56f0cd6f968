"""Floor 8: a grid of runs, each a config file and a command, and their table and figure."""
