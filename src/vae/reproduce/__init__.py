"""Floor 9: studies and reproduced documents, each a package or a file of its own."""
