"""`python -m ivis_spark.cli` is `ivis-spark`."""

import sys

from ivis_spark.cli import main

sys.exit(main())
