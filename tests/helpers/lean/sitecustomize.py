"""Less CPU for the processes that tests start by the dozen, by what they do before their first line."""

import contextlib
import gc
import importlib
import os
import sys

if "ivis_spark.train.rank" in sys.orig_argv:
    # What Keras imports if it is there and ranks do without: two of the five seconds that the start of one takes.
    sys.modules.update(dict.fromkeys(("matplotlib", "pandas", "sklearn")))
elif "pyspark.daemon" in sys.orig_argv:
    # The process that Spark forks Python workers from imports once what each of them would. It gets no zips: before
    # each task Spark invalidates a worker's importers, and Python then reads the directory of every zip on its path,
    # which takes .2 s of CPU; PySpark is installed here and needs none. Nor does it get this folder, which would go on
    # to ranks: those that Spark starts find what users' do.
    here = os.path.dirname(__file__)
    sys.path[:] = [path for path in sys.path if os.path.isdir(path) and not os.path.samefile(path, here)]
    sys.path_importer_cache.clear()
    with contextlib.suppress(ImportError):
        for name in ("numpy", "pandas", "pyarrow", "pyspark.worker"):
            importlib.import_module(name)
    gc.freeze()  # workers collect after each task, and need not look at these modules
