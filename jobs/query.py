"""spark-submit jobs/query.py OPTIONS: `ivis-spark query` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["query", *sys.argv[1:]]))
