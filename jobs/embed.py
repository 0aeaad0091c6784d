"""spark-submit jobs/embed.py OPTIONS: `ivis-spark embed` with the same options and exit codes."""

import sys

from ivis_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
