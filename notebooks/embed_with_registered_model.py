# Databricks notebook source
# MAGIC %md
# MAGIC # Embed with a registered model
# MAGIC
# MAGIC Registers the model of a finished run in MLflow, then embeds a table with the registered model. The second half
# MAGIC needs no run folder, no training data and no TensorFlow on executors: a scheduled job does it every night.

# COMMAND ----------

dbutils.widgets.text("run", "", "Run folder whose model is registered; empty: use what is registered")
dbutils.widgets.text("model", "main.default.ivis_cells", "Name of the registered model")
dbutils.widgets.text("input", "main.default.cells", "The table: a name with format=table, else a path")
dbutils.widgets.text("format", "table", "table, delta, parquet, ...")
dbutils.widgets.text("id_col", "id", "Column that comes along")
dbutils.widgets.text("output", "/Volumes/main/default/embeddings/cells", "Where the embeddings go")

# COMMAND ----------

import mlflow

name = dbutils.widgets.get("model")
if dbutils.widgets.get("run"):
    from ivis_spark.serving.folder import read_model
    from ivis_spark.serving.pyfunc import log_pyfunc

    with mlflow.start_run():
        logged = log_pyfunc(read_model(dbutils.widgets.get("run")), "model")
    mlflow.register_model(logged.model_uri, name)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The newest version embeds the table

# COMMAND ----------

from mlflow.tracking import MlflowClient

versions = MlflowClient().search_model_versions(f"name = '{name}'")
newest = max(int(version.version) for version in versions)
uri = f"models:/{name}/{newest}"
embed = mlflow.pyfunc.spark_udf(spark, uri, result_type="array<float>", env_manager="local")

# COMMAND ----------

from ivis_spark import pyfunc_input

kind, source = dbutils.widgets.get("format"), dbutils.widgets.get("input")
table = spark.table(source) if kind == "table" else spark.read.format(kind).load(source)
features = pyfunc_input(table, mlflow.models.get_model_info(uri).signature)  # arrays, vectors or several columns
embedded = table.select(dbutils.widgets.get("id_col"), embed(features).alias("embedding"))
embedded.write.mode("overwrite").parquet(dbutils.widgets.get("output"))

# COMMAND ----------

spark.read.parquet(dbutils.widgets.get("output")).createOrReplaceTempView("embeddings")

# COMMAND ----------

# MAGIC %sql
# MAGIC SELECT count(*) AS rows, min(size(embedding)) AS dims FROM embeddings
