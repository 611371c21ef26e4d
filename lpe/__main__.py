"""``python -m lpe`` is the ``lpe`` command."""

from lpe.cli import entry

if __name__ == "__main__":
    entry()
