"""The experiment: options, the rules between them, and the one function that reads files."""
