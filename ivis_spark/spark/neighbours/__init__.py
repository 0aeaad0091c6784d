"""The neighbours stage on Spark: stage tells the story; calibration, layout, tasks and merge are its steps."""
