"""spark-submit jobs/train.py OPTIONS: `ivis-spark train` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
