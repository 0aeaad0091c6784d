# The Python that R uses: found, installed, and called so that its errors and warnings are those of R.

.onLoad <- function(libname, pkgname) {
  chosen <- nzchar(Sys.getenv(c("RETICULATE_PYTHON", "RETICULATE_PYTHON_ENV", "RETICULATE_PYTHON_FALLBACK")))
  if (!any(chosen) && reticulate::virtualenv_exists("r-ivis")) reticulate::use_virtualenv("r-ivis", required = FALSE)
}

python_package <- function() {
  if (!reticulate::py_available() && is.na(Sys.getenv("RETICULATE_MINICONDA_ENABLED", NA))) {
    Sys.setenv(RETICULATE_MINICONDA_ENABLED = "FALSE")  # whose question is not ours
    on.exit(Sys.unsetenv("RETICULATE_MINICONDA_ENABLED"))
  }
  package <- tryCatch({
    package <- reticulate::import("ivis_spark")
    package$Ivis  # which imports what it needs
    package
  }, error = function(err) refuse(why_not(conditionMessage(err))))
  problem <- misfit(reticulate::py_config())
  if (!is.null(problem)) refuse(problem)
  package
}

# Why Python has no model for us, and what to do.
why_not <- function(message) {
  config <- tryCatch(if (reticulate::py_available()) reticulate::py_config(), error = function(err) NULL)
  if (is.null(config)) config <- tryCatch(reticulate::py_discover_config("ivis_spark"), error = function(err) NULL)
  problem <- if (is.null(config)) "R finds no Python. Install one with ivis_spark by install_ivis()" else misfit(config)
  if (!is.null(problem)) return(problem)
  missing <- regmatches(message, regexec("No module named '([^']+)'", message))[[1]][2]
  paste0(if (is.na(missing)) paste0("ivis_spark cannot be loaded by ", config$python, " (", in_r(message), ")")
         else paste0("the Python ", config$python, " has no package ", missing),
         ". Install it with install_ivis(), then restart R")
}

# What this reticulate cannot do with a Python, NULL if all is well.
misfit <- function(config) {
  limits <- limits()
  numpy <- config$numpy$version
  advice <- "Install a Python that fits with install_ivis(), then restart R; or update reticulate"
  if (numeric_version(config$version) > limits$python) {
    return(paste0(reticulate_name(), " takes Python up to ", limits$python, ", and ", config$python, " is ",
                  config$version, ". ", advice))
  }
  if (!is.null(numpy) && !limits$numpy2 && numpy >= "2") {
    paste0(reticulate_name(), " takes NumPy 1, and ", config$python, " has NumPy ", numpy, ". ", advice)
  }
}

reticulate_name <- function() paste("reticulate", utils::packageVersion("reticulate"))

# The newest Python of ivis_spark and of a version of reticulate, and whether that knows NumPy 2.
limits <- function(reticulate = utils::packageVersion("reticulate")) {
  python <- if (reticulate < "1.33") "3.11" else if (reticulate < "1.40") "3.12" else "3.13"
  list(python = numeric_version(python), numpy2 = reticulate >= "1.39")
}

# Calls Python: its errors, warnings and log become those of R, in words of R.
from_python <- function(call, words = in_r) {
  catching <- reticulate::import("warnings", convert = FALSE)$catch_warnings(record = TRUE)
  caught <- catching$`__enter__`()
  log <- reticulate::import("logging")$getLogger("ivis_spark")
  listener <- reticulate::import("logging.handlers")$BufferingHandler(1000000L)
  listener$setLevel("WARNING")
  propagates <- log$propagate
  log$addHandler(listener)
  reticulate::py_set_attr(log, "propagate", FALSE)
  on.exit({
    log$removeHandler(listener)
    reticulate::py_set_attr(log, "propagate", propagates)
    catching$`__exit__`(NULL, NULL, NULL)
    texts <- c(vapply(listener$buffer, function(record) record$getMessage(), ""),
               unlist(reticulate::iterate(caught, function(each) as.character(reticulate::py_str(each$message)))))
    # the columns of rows of R are in the order of the fit already
    for (text in unique(texts[!grepl("X does not have valid feature names", texts)])) warning(words(text), call. = FALSE)
  })
  tryCatch(call, error = function(err) {
    if (startsWith(conditionMessage(err), "KeyboardInterrupt")) stop(structure(class = c("interrupt", "condition"), list()))
    refuse(words(conditionMessage(err)))
  })
}

in_r <- function(text) {
  text <- sub("^ivis_spark[A-Za-z0-9_.]*: ", "", text)
  text <- sub("\\s*(Run `?reticulate::py_last_error\\(\\)`? for details\\.)?\\s*$", "", text)
  text <- gsub("\\b([a-z_]+)=True\\b", "\\1 = TRUE", text)
  text <- gsub("\\b([a-z_]+)=False\\b", "\\1 = FALSE", text)
  text <- gsub("for example with sklearn\\.preprocessing\\.\\w+", "for example with scale(X)", text)
  text <- gsub("scale it with sklearn\\.preprocessing", "scale it with scale(X)", text)
  gsub("a new Ivis\\b", "a new model with ivis()", text)
}

#' Install the Python package
#'
#' Installs \code{ivis_spark} and the packages for fitting on one machine into a virtual environment, checks that they
#' can be imported, and uses that environment in this session if no Python is in use yet. Later sessions use the
#' environment \code{r-ivis} by themselves, unless another Python is chosen, as by \code{RETICULATE_PYTHON}.
#'
#' The Python and the packages fit the installed version of reticulate: before 1.33 it takes Python up to 3.11, before
#' 1.40 up to 3.12, and before 1.39 NumPy 1, with which goes TensorFlow 2.18. From a clone of the repository the exact
#' versions that its tests run on are installed. An environment that cannot be completed is removed again.
#'
#' @param envname Virtual environment, created if missing.
#' @param package What pip installs: a requirement such as \code{"ivis_spark==0.1.0"}, or the path of a wheel or of the
#'   source. The packages for fitting, the extra \code{cpu}, come with it, unless it names \code{gpu}, as in
#'   \code{"ivis_spark[gpu]"}.
#' @param python Python that the environment is made with; by default one that fits is searched on the path.
#' @param python_version Version of that Python, for example \code{"3.11"}.
#' @param ... Passed to \code{reticulate::py_install}, for example \code{pip_options}.
#' @return The name of the environment, invisibly.
#' @examples
#' \dontrun{
#' install_ivis()
#' }
#' @export
install_ivis <- function(envname = "r-ivis", package = "ivis_spark", python = NULL, python_version = NULL, ...) {
  requirement <- requirement_of(package)
  existed <- reticulate::virtualenv_exists(envname)
  done <- FALSE
  on.exit(if (!done && !existed && reticulate::virtualenv_exists(envname)) {
    reticulate::virtualenv_remove(envname, confirm = FALSE)
    message("The environment ", envname, " was not completed and is removed")
  })
  base <- if (existed) python_of(envname, python, python_version) else find_python(python, python_version)
  if (!existed) reticulate::virtualenv_create(envname, python = base$path, packages = FALSE)
  options <- c("-c", constraints_for(requirement$source, base$version), list(...)$pip_options)
  others <- list(...)[setdiff(names(list(...)), "pip_options")]
  do.call(reticulate::py_install, c(list(requirement$text, envname = envname, method = "virtualenv", pip = TRUE,
                                         pip_options = options), others))
  check_installed(envname)
  done <- TRUE
  use_environment(envname)
  invisible(envname)
}

use_environment <- function(envname) {
  python <- reticulate::virtualenv_python(envname)
  chosen <- Sys.getenv("RETICULATE_PYTHON")
  if (nzchar(chosen)) {
    message("RETICULATE_PYTHON is set, so that R uses ", chosen, ": unset it, or set it to ", python)
  } else if (!reticulate::py_available()) {
    reticulate::use_virtualenv(envname, required = TRUE)
  } else if (reticulate::py_config()$python != python) {
    message("This session uses ", reticulate::py_config()$python, ": restart R to use ", python)
  }
}

# The requirement with its extra [cpu], and the folder of its source if it is one.
requirement_of <- function(package) {
  if (!is.character(package) || length(package) != 1 || is.na(package)) refuse("package must be one text")
  with_cpu <- function(extras) {
    names <- setdiff(strsplit(gsub("[][ ]", "", extras), ",")[[1]], "")
    paste0("[", paste(c(names, if (!any(c("cpu", "gpu") %in% names)) "cpu"), collapse = ","), "]")
  }
  parts <- regmatches(package, regexec("^([^][]*)(\\[[^]]*\\])?(.*)$", package))[[1]]
  path <- path.expand(parts[2])
  is_source <- file.exists(file.path(path, "setup.cfg")) || file.exists(file.path(path, "pyproject.toml"))
  if (is_source || (file.exists(path) && !dir.exists(path))) {
    path <- normalizePath(path)
    return(list(text = paste0(path, with_cpu(parts[3])), source = if (is_source) path))
  }
  named <- regmatches(package, regexec("^([A-Za-z0-9][A-Za-z0-9._-]*)\\s*(\\[[^]]*\\])?\\s*((==|>=|<=|~=|!=|<|>|@).*)?$",
                                       package))[[1]]
  if (grepl("^(git\\+|https?:|file:)", package)) return(list(text = paste0("ivis_spark[cpu] @ ", package)))
  if (length(named) == 0 || grepl("\\.(whl|gz|zip)$", named[2])) {
    refuse("package is ", dQuote(package, FALSE), ", which is neither a requirement, as \"ivis_spark==0.1.0\", nor ",
           "a wheel or the folder of the source that is there")
  }
  list(text = paste0(named[2], with_cpu(named[3]), if (startsWith(named[4], "@")) " ", named[4]))
}

# A file of versions that fit: of a clone its exact ones, otherwise what reticulate needs.
constraints_for <- function(source, version, limits = limits_now()) {
  classic <- !limits$numpy2 || version < "3.11"
  pins <- file.path(c(source, "")[1], "conf", if (classic) "constraints.txt" else "constraints-today.txt")
  if (!is.null(source) && file.exists(pins) && Sys.info()[["sysname"]] == "Linux") return(shQuote(pins))
  file <- tempfile("constraints", fileext = ".txt")
  writeLines(if (!limits$numpy2) c("numpy<2", "tensorflow<2.19", "tensorflow-cpu<2.19") else character(), file)
  shQuote(file)
}

limits_now <- function() limits()

# Version and path of a Python, and what it lacks to be R's; NULL if it does not run, as the shims of pyenv.
probe <- function(python) {
  script <- tempfile(fileext = ".py")
  on.exit(unlink(script))
  writeLines(c(
    "import glob, importlib.util, os, sys, sysconfig",
    "print('%d.%d.%d' % sys.version_info[:3])",
    "print(getattr(sys, '_base_executable', None) or sys.executable)",
    "places = [sysconfig.get_config_var(name) or '' for name in ('LIBPL', 'LIBDIR')]",
    "places += [sys.base_prefix, os.path.join(sys.base_prefix, 'lib')]",
    "name = 'libpython%d.%d*.%s' % (*sys.version_info[:2], 'dylib' if sys.platform == 'darwin' else 'so*')",
    "shared = os.name == 'nt' or any(glob.glob(os.path.join(place, name)) for place in places)",
    "makes = all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip'))",
    "print('' if shared else 'no shared library', '' if makes else 'no venv', sep=';')"
  ), script)
  found <- tryCatch(suppressWarnings(system2(python, c("-E", shQuote(script)), stdout = TRUE, stderr = FALSE)),
                    error = function(err) NULL)
  if (length(found) != 3 || !is.null(attr(found, "status"))) return(NULL)
  lacks <- setdiff(strsplit(found[3], ";")[[1]], "")
  list(version = numeric_version(found[1]), path = found[2], lacks = lacks)
}

minor <- function(version) version[, 1:2]

does_fit <- function(found, limits) {
  minor(found$version) >= "3.10" && minor(found$version) <= limits$python && length(found$lacks) == 0
}

described <- function(found) {
  lacks <- if (length(found$lacks) > 0) paste(" with", paste(found$lacks, collapse = " and "))
  paste0(found$path, " (", found$version, lacks, ")")
}

# A Python for the environment: the one asked for, or the best there is.
find_python <- function(python = NULL, version = NULL, limits = limits_now()) {
  wanted <- paste0("ivis_spark with ", reticulate_name(), " takes Python 3.10 to ", limits$python)
  if (!is.null(version)) {
    asked <- numeric_version(version)
    if (minor(asked) < "3.10" || minor(asked) > limits$python) refuse(wanted, ", python_version is ", version)
  }
  versions <- if (is.null(version)) c("3.11", "3.12", "3.10", "3.13") else as.character(minor(numeric_version(version)))
  pyenv <- file.path(Sys.getenv("PYENV_ROOT", "~/.pyenv"), "versions", paste0(versions, "*"), "bin", "python")
  names <- if (is.null(python)) c(paste0("python", versions), "python3", "python", Sys.glob(pyenv)) else path.expand(python)
  others <- list()
  for (name in names) {
    found <- probe(name)
    if (is.null(found)) next
    is_asked <- is.null(version) || startsWith(paste0(found$version, "."), paste0(version, "."))
    if (is_asked && does_fit(found, limits)) return(found)
    others <- c(others, list(described(found)))
  }
  if (!is.null(python)) {
    refuse(wanted, if (!is.null(version)) paste0(" (python_version is ", version, ")"), " with a shared library and venv; ",
           if (length(others) > 0) paste("python is", others[[1]]) else paste0("python = ", dQuote(python, FALSE), " does not run"))
  }
  best <- if (is.null(version)) "3.11" else version
  refuse(wanted, " with a shared library and venv; this machine has ",
         if (length(others) > 0) paste(unique(unlist(others)), collapse = ", ") else "none", ". Install one (Debian: apt-get ",
         "install python", best, "-venv; or reticulate::install_python(\"", best, "\")), or pass its path as python")
}

# The Python of an environment that is there, if it can be used.
python_of <- function(envname, python, version, limits = limits_now()) {
  found <- probe(reticulate::virtualenv_python(envname))
  asked <- if (!is.null(python)) find_python(python, version, limits)$version else version
  problem <- if (is.null(found)) "does not run"
             else if (minor(found$version) < "3.10" || minor(found$version) > limits$python)
               paste0("is ", found$version, "; ", reticulate_name(), " takes 3.10 to ", limits$python)
             else if (!is.null(asked) && minor(found$version) != minor(numeric_version(asked)))
               paste0("is ", found$version, ", and not ", asked)
  if (is.null(problem)) return(found)
  refuse("the environment ", envname, " is there, but its Python ", problem, ": remove it with reticulate::virtualenv_remove(",
         dQuote(envname, FALSE), "), or pass another envname")
}

# Imports what a fit needs, in the new environment.
check_installed <- function(envname, limits = limits_now()) {
  script <- tempfile(fileext = ".py")
  on.exit(unlink(script))
  writeLines(c(
    "import importlib",
    "for name in ('numpy', 'sklearn', 'annoy', 'tensorflow', 'keras', 'ivis_spark'):",
    "    try:",
    "        version = getattr(importlib.import_module(name), '__version__', '')",
    "        print('checked', name, version)",
    "    except Exception as err:",
    "        print('lacks', name, '(' + str(err).splitlines()[0] + ')' if str(err) else '')"
  ), script)
  python <- reticulate::virtualenv_python(envname)
  lines <- suppressWarnings(system2(python, c("-E", shQuote(script)), stdout = TRUE, stderr = FALSE))
  lacks <- sub("^lacks ", "", grep("^lacks ", lines, value = TRUE))
  if (length(lacks) > 0) refuse("the installation is incomplete: ", envname, " lacks ", paste(lacks, collapse = ", "))
  if (!any(grepl("^checked ivis_spark", lines))) refuse("the installation cannot be checked: ", python, " does not run")
  numpy <- sub("^checked numpy ", "", grep("^checked numpy", lines, value = TRUE))
  if (!limits$numpy2 && !startsWith(numpy, "1.")) {
    refuse(envname, " has NumPy ", numpy, "; ", reticulate_name(), " takes NumPy 1")
  }
}
