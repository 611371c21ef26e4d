"""``python -m benchmarks.regression``, the same as ``python -m benchmarks regression``."""

import sys

from benchmarks.regression import main
from lpe.interruption import answered

if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
