"""`python -m benchmarks NAME ...` is `itl bench run NAME ...`."""

import sys

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "run", *sys.argv[1:]]))
