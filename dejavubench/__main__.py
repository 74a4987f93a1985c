"""``python -m dejavubench``."""

from dejavubench.cli import main

if __name__ == "__main__":
    main(prog_name="dejavubench")
