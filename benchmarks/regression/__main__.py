"""``python -m benchmarks.regression``, the same as ``python -m benchmarks regression``."""

import sys

from benchmarks.regression import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
