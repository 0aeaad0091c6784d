"""spark-submit jobs/neighbours.py OPTIONS: `ivis-spark neighbours` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["neighbours", *sys.argv[1:]]))
