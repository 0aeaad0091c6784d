"""spark-submit jobs/evaluate.py OPTIONS: `ivis-spark evaluate` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
