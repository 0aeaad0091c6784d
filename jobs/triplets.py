"""spark-submit jobs/triplets.py OPTIONS: `ivis-spark triplets` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["triplets", *sys.argv[1:]]))
