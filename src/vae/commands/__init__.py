"""Floor 10: the command lines. Each module has a `main(argv)` that returns an exit status, and imports torch only once
the arguments are parsed."""
