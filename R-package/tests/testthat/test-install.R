# Neither the network nor TensorFlow: the packages are wheels with nothing in them.
folder <- tempfile("install")
dir.create(folder)
with_environment <- function(values) {
  set <- function(values) {
    Sys.unsetenv(names(values)[is.na(values)])
    if (any(!is.na(values))) do.call(Sys.setenv, as.list(values[!is.na(values)]))
  }
  old <- Sys.getenv(names(values), unset = NA, names = TRUE)
  set(values)
  function() set(old)
}

skip_without_interpreter <- function() {
  skip_on_os("windows")
  found <- tryCatch(find_python(), error = function(err) NULL)
  if (is.null(found)) skip("no Python that can make environments")
  found
}

# A wheel of a package that holds modules, and needs others if the extra cpu is asked for.
wheel <- function(name, modules, needs = character()) {
  place <- file.path(folder, name)
  info <- file.path(place, paste0(name, "-1.0.dist-info"))
  dir.create(info, recursive = TRUE)
  for (module in modules) writeLines("__version__ = '1.26'\nIvis = 1", file.path(place, paste0(module, ".py")))
  writeLines(c("Metadata-Version: 2.1", paste("Name:", name), "Version: 1.0", "Provides-Extra: cpu",
               sprintf("Requires-Dist: %s; extra == 'cpu'", needs)), file.path(info, "METADATA"))
  writeLines(c("Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"), file.path(info, "WHEEL"))
  files <- file.path(c(paste0(modules, ".py"), file.path(basename(info), c("METADATA", "WHEEL"))))
  writeLines(paste0(files, ",,"), file.path(info, "RECORD"))
  file <- file.path(folder, paste0(name, "-1.0-py3-none-any.whl"))
  python <- skip_without_interpreter()$path
  script <- "import sys, zipfile; [zipfile.ZipFile(sys.argv[1], 'a').write(name) for name in sys.argv[2:]]"
  old <- setwd(place)
  on.exit(setwd(old))
  system2(python, c("-c", shQuote(script), shQuote(file), files, file.path(basename(info), "RECORD")))
  file
}

# A program that answers as a Python of some version would.
python_named <- function(name, version, lacks = "") {
  path <- file.path(folder, name)
  writeLines(c("#!/bin/sh", paste("echo", version), paste("echo", path), paste0("echo '", lacks, "'")), path)
  Sys.chmod(path, "755")
  path
}

# What an interactive session prints, on whose machine R finds Python by itself.
session <- function(line) {
  back <- with_environment(c(RETICULATE_PYTHON = NA, PYTHONPATH = NA, HOME = folder, PATH = "/usr/bin:/bin",
                             R_LIBS = paste(.libPaths(), collapse = ":")))
  on.exit(back())
  old <- setwd(folder)
  on.exit(setwd(old), add = TRUE)
  lines <- c("suppressMessages(library(ivisspark))", line)
  flags <- c("--vanilla", "--interactive", "--no-readline", "--quiet")
  paste(suppressWarnings(system2(file.path(R.home("bin"), "R"), flags, input = lines, stdout = TRUE, stderr = TRUE)),
        collapse = "\n")
}

test_that("a session without the package says so, and neither installs nor asks", {
  skip_without_interpreter()
  back <- with_environment(c(WORKON_HOME = file.path(folder, "none")))
  on.exit(back())
  said <- session("ivis(k = 15)")
  expect_match(said, "install_ivis\\(\\), then restart R")
  expect_no_match(said, "Miniconda|pip")
  expect_false(any(grepl("reticulate:", readLines(system.file("DESCRIPTION", package = "ivisspark")))))
})

test_that("the advice names what keeps R from the environment that is there", {
  back <- with_environment(c(WORKON_HOME = file.path(folder, "advice"), RETICULATE_PYTHON = "/p/bin/python",
                             RETICULATE_PYTHON_ENV = NA))
  on.exit(back())
  expect_match(advice("/p/bin/python"), "install_ivis\\(\\), unset RETICULATE_PYTHON and then restart R. From a clone")
  ours <- file.path(folder, "advice", "r-ivis", "bin")
  dir.create(ours, recursive = TRUE)
  for (name in c("python", "activate_this.py", "pyvenv.cfg")) file.create(file.path(ours, name))
  skip_if_not(reticulate::virtualenv_exists("r-ivis"))
  expect_match(advice("/p/bin/python"), "RETICULATE_PYTHON is /p/bin/python: unset it, or set it to .*r-ivis")
  expect_match(advice(file.path(ours, "python")), "^Install it with install_ivis\\(\\), then")
  Sys.unsetenv("RETICULATE_PYTHON")
  expect_match(advice("/p/bin/python"), "this session uses /p/bin/python, .*use_virtualenv\\(\"r-ivis\"\\)")
})

test_that("misspelt arguments of an installation are refused", {
  expect_error(install_ivis(pkg = "a.whl"), "no argument .pkg.; it has: envname, package, .*pip_options")
  expect_error(install_ivis("r-ivis", "a", NULL, NULL, "more"), "without a name")
})

test_that("the extra of fitting belongs to every package", {
  text <- function(package) requirement_of(package)$text
  expect_equal(text("ivis_spark"), "ivis_spark[cpu]")
  expect_equal(text("ivis_spark[report]==0.1"), "ivis_spark[report,cpu]==0.1")
  expect_equal(text("ivis_spark[gpu]>=0.1"), "ivis_spark[gpu]>=0.1")
  expect_equal(text("https://host/ivis.whl"), "ivis_spark[cpu] @ https://host/ivis.whl")
  clone <- file.path(normalizePath(folder), "clone")
  dir.create(clone)
  expect_error(text(clone), "neither a requirement")
  file.create(file.path(clone, "setup.cfg"))
  expect_equal(text(clone), paste0(clone, "[cpu]"))
  expect_equal(text(paste0(clone, "[report]")), paste0(clone, "[report,cpu]"))
  expect_equal(requirement_of(clone)$source, clone)
  file.create(file.path(clone, "a.whl"))
  expect_equal(text(file.path(clone, "a.whl")), paste0(clone, "/a.whl[cpu]"))
  expect_error(text("no/such/folder"), "neither a requirement")
  expect_error(text("missing.whl"), "neither a requirement")
})

test_that("what reticulate takes decides on Python and NumPy", {
  old <- limits(package_version("1.28"))
  new <- limits(package_version("1.43.0"))
  expect_equal(c(format(old$python), format(limits(package_version("1.35"))$python), format(new$python)),
               c("3.11", "3.12", "3.13"))
  read <- function(...) readLines(gsub("^'|'$", "", constraints_for(...)))
  version <- numeric_version("3.11.2")
  expect_setequal(read(NULL, version, old), c("numpy<2", "tensorflow<2.19", "tensorflow-cpu<2.19"))
  expect_length(read(NULL, version, new), 0)
  clone <- file.path(folder, "clone of pins")
  dir.create(file.path(clone, "conf"), recursive = TRUE)
  writeLines("numpy==1.26.4", file.path(clone, "conf", "constraints.txt"))
  writeLines("numpy==2.5.5", file.path(clone, "conf", "constraints-today.txt"))
  skip_on_os(c("windows", "mac"))
  expect_equal(read(clone, version, old), "numpy==1.26.4")
  expect_equal(read(clone, version, new), "numpy==2.5.5")
  expect_equal(read(clone, numeric_version("3.10.1"), new), "numpy==1.26.4")
  config <- list(python = "/p/python", version = "3.12", numpy = list(version = numeric_version("2.1")))
  expect_null(misfit(list(python = "/p", version = "3.11", numpy = list(version = numeric_version("1.26")))))
  if (!limits()$numpy2) {
    config$version <- "3.11"
    expect_match(misfit(config), "takes NumPy 1, and /p/python has NumPy 2.1")
  }
})

test_that("a Python that fits is found, and another is refused by name", {
  skip_on_os("windows")
  back <- with_environment(c(PATH = folder, PYENV_ROOT = folder))
  on.exit(back())
  old <- limits(package_version("1.28"))
  python_named("python3.13", "3.13.0")
  expect_error(find_python(limits = old),
               "Python 3.10 to 3.11 .*; this machine has .*python3.13 \\(3.13.0\\).*python3.11-venv")
  python_named("python3.11", "3.11.2", "shared library;venv")
  expect_error(find_python(limits = old), "3.11.2 without shared library, venv")
  expect_error(find_python(python = file.path(folder, "python3.13"), limits = old), "python is .*3.13.0")
  expect_error(find_python(python = "no_such_python", limits = old), "does not run")
  expect_error(find_python(version = "3.12", limits = old), "python_version is 3.12")
  python_named("python3.10", "3.10.9")
  expect_equal(find_python(limits = old)$path, file.path(folder, "python3.10"))
  expect_error(find_python(version = "3.11", limits = old), "3.11.2 without shared")
  python_named("python3.11", "3.11.2")
  expect_equal(find_python(limits = old)$path, file.path(folder, "python3.11"))
  expect_equal(find_python(version = "3.10", limits = old)$path, file.path(folder, "python3.10"))
  expect_equal(find_python(limits = limits(package_version("1.43")))$path, file.path(folder, "python3.11"))
})

test_that("an installation is complete, or is removed with what it lacks", {
  skip_without_interpreter()
  skip_if(nzchar(Sys.getenv("RETICULATE_PYTHON")) && !file.exists(Sys.getenv("RETICULATE_PYTHON")))
  back <- with_environment(c(WORKON_HOME = file.path(folder, "environments")))
  on.exit(back())
  install <- function(package, ...) {
    options <- c("--no-index", "--find-links", folder)
    utils::capture.output(install_ivis(package = package, pip_options = options, ...))
  }
  wheel("stubstack", c("numpy", "sklearn", "annoy", "tensorflow", "keras"))
  complete <- wheel("ivis_spark", "ivis_spark", needs = "stubstack")
  install(complete)
  expect_true(reticulate::virtualenv_exists("r-ivis"))
  used <- session("cat('It is', reticulate::py_discover_config()$python)")
  expect_match(used, "It is .*environments/r-ivis/bin/python")
  install(complete, python_version = format(minor(python_of("r-ivis", NULL, NULL)$version)))
  broken <- wheel("halfivis", "ivis_spark")
  expect_error(expect_message(install(broken, envname = "half"), "half was not completed and is removed"),
               "half lacks numpy .*sklearn .*annoy .*tensorflow .*keras")
  expect_false(reticulate::virtualenv_exists("half"))
  expect_error(expect_message(install("no_such_ivis", envname = "half"), "removed"),
               "Error installing.*no matching distribution: .*package = \"path to the clone\"")
  expect_false(reticulate::virtualenv_exists("half"))
  expect_error(install(complete, envname = "r-ivis", python_version = "3.9"), "python_version is 3.9|is there, but")
  expect_error(python_of("r-ivis", NULL, NULL, list(python = numeric_version("3.9"))), "is there, but its Python is")
})
