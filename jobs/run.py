"""spark-submit jobs/run.py OPTIONS: `ivis-spark run` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
