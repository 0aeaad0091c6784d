# Databricks notebook source
# MAGIC %md
# MAGIC # Embed a table
# MAGIC
# MAGIC All stages: neighbours, triplets, training, embeddings, report. Needs a cluster with Databricks Runtime 17.3 LTS
# MAGIC ML in single-user access mode, as the stages use Spark's executors directly. The next cell installs the wheel
# MAGIC of `ivis_spark` and Annoy. Finished stages are skipped: run an interrupted notebook again.

# COMMAND ----------

# MAGIC %pip install --quiet annoy /Volumes/main/default/packages/ivis_spark-0.1.0-py3-none-any.whl

# COMMAND ----------

dbutils.widgets.text("input", "main.default.cells", "The table: a name with format=table, else a path")
dbutils.widgets.text("format", "table", "table, delta, parquet, ...")
dbutils.widgets.text("output", "/Volumes/main/default/runs/cells", "Run folder, a Volume path")
dbutils.widgets.text("id_col", "id", "Column with a unique integer, or empty")
dbutils.widgets.text("label_col", "", "Column with labels, or empty")
dbutils.widgets.text("settings", "neighbours.k=15", "Settings, separated by blanks")

# COMMAND ----------

from ivis_spark import Pipeline, load_config
from ivis_spark.runtime import logs

columns = {"data.format": "format", "data.id_col": "id_col", "data.label_col": "label_col"}
given = {key: dbutils.widgets.get(widget) for key, widget in columns.items()}
assignments = [f"{key}={value}" for key, value in given.items() if value] + dbutils.widgets.get("settings").split()
config = load_config(None, assignments)
logs.set_up()

# COMMAND ----------

# MAGIC %md
# MAGIC ## The stages
# MAGIC Each publishes its own folder in the run folder, completely or not at all.

# COMMAND ----------

pipeline = Pipeline(
    dbutils.widgets.get("output"), config, get_spark=lambda: spark, input_uri=dbutils.widgets.get("input")
)
manifests = pipeline.run()

# COMMAND ----------

# MAGIC %md
# MAGIC ## Results

# COMMAND ----------

figures = manifests["report"].info
for name in ("trustworthiness", "random_triplet_accuracy", "knn_accuracy"):
    if figures.get(name) is not None:
        print(f"{name:<28} {figures[name]:.3f}")

# COMMAND ----------

embeddings = spark.read.parquet(pipeline.run_folder.data("embeddings"))
embeddings.createOrReplaceTempView("embeddings")

# COMMAND ----------

# MAGIC %sql
# MAGIC SELECT count(*) AS rows, min(size(embedding)) AS dims FROM embeddings
