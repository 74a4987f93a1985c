"""Models by name and in Hugging Face folders: sizes, families, checkpoints. Free of torch."""
