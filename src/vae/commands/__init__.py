"""Floor 9: the command lines. Each module has a `main(argv)` that gives an exit status; torch is imported only after
the arguments are understood."""
