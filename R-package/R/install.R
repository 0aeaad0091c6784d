# Makes the environment of Python that later sessions use.

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
#' @param ... Passed to \code{reticulate::py_install}, for example \code{pip_options}; unknown names are refused.
#' @return The name of the environment, invisibly.
#' @examples
#' \dontrun{
#' install_ivis()
#' install_ivis(package = "path to the clone")  # of the repository
#' }
#' @export
install_ivis <- function(envname = "r-ivis", package = "ivis_spark", python = NULL, python_version = NULL, ...) {
  passed <- setdiff(names(c(formals(reticulate::py_install), formals(reticulate::virtualenv_install))),
                    c("...", "packages", "method", "conda", "pip", names(formals(install_ivis))))
  check_no_others("install_ivis()", setdiff(dots_names(...), passed),
                  toString(c(setdiff(names(formals(install_ivis)), "..."), passed)))
  requirement <- requirement_of(package)
  existed <- reticulate::virtualenv_exists(envname)
  done <- FALSE
  on.exit(if (!done && !existed && reticulate::virtualenv_exists(envname)) {
    reticulate::virtualenv_remove(envname, confirm = FALSE)
    message("The environment ", envname, " was not completed and is removed")
  })
  shadow <- Sys.getenv("PYTHONPATH", unset = NA)  # packages there would count as installed
  if (!is.na(shadow)) {
    Sys.unsetenv("PYTHONPATH")
    on.exit(Sys.setenv(PYTHONPATH = shadow), add = TRUE)
  }
  base <- if (existed) python_of(envname, python, python_version) else find_python(python, python_version)
  if (!existed) reticulate::virtualenv_create(envname, python = base$path, packages = FALSE)
  options <- c("-c", constraints_for(requirement$source, base$version), list(...)$pip_options)
  others <- list(...)[setdiff(names(list(...)), "pip_options")]
  arguments <- list(requirement$text, envname = envname, method = "virtualenv", pip = TRUE, pip_options = options)
  tryCatch(do.call(reticulate::py_install, c(arguments, others)), error = function(err) {
    refuse(conditionMessage(err), ". If pip finds no matching distribution: ", from_clone)
  })
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
  form <- "^([A-Za-z0-9][A-Za-z0-9._-]*)\\s*(\\[[^]]*\\])?\\s*((==|>=|<=|~=|!=|<|>|@).*)?$"
  named <- regmatches(package, regexec(form, package))[[1]]
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

# A default argument cannot call a function of its own name: limits = limits() would call itself.
limits_now <- function() limits()

# Lines that a script of Python prints; NULL if the Python does not run.
run_python <- function(python, lines) {
  script <- tempfile(fileext = ".py")
  on.exit(unlink(script))
  writeLines(lines, script)
  tryCatch(suppressWarnings(system2(python, c("-E", shQuote(script)), stdout = TRUE, stderr = FALSE)),
           error = function(err) NULL)
}

# Version and path of a Python, and what it lacks to be R's; NULL if it does not run, as the shims of pyenv.
probe <- function(python) {
  found <- run_python(python, c(
    "import glob, importlib.util, os, sys, sysconfig",
    "print('%d.%d.%d' % sys.version_info[:3])",
    "print(getattr(sys, '_base_executable', None) or sys.executable)",
    "places = [sysconfig.get_config_var(name) or '' for name in ('LIBPL', 'LIBDIR')]",
    "places += [sys.base_prefix, os.path.join(sys.base_prefix, 'lib')]",
    "name = 'libpython%d.%d*.%s' % (*sys.version_info[:2], 'dylib' if sys.platform == 'darwin' else 'so*')",
    "shared = os.name == 'nt' or any(glob.glob(os.path.join(place, name)) for place in places)",
    "makes = all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip'))",
    "try:",
    "    import ssl  # which other libraries of R can break",
    "except ImportError:",
    "    ssl = None",
    "lacks = [name for name, has in (('shared library', shared), ('venv', makes), ('ssl', ssl)) if not has]",
    "print(*lacks, sep=';')"
  ))
  if (length(found) != 3 || !is.null(attr(found, "status"))) return(NULL)
  list(version = numeric_version(found[1]), path = found[2], lacks = strsplit(found[3], ";")[[1]])
}

minor <- function(version) version[, 1:2]

does_fit <- function(found, limits) {
  minor(found$version) >= "3.10" && minor(found$version) <= limits$python && length(found$lacks) == 0
}

described <- function(found) {
  lacks <- if (length(found$lacks) > 0) paste0(" without ", paste(found$lacks, collapse = ", "))
  paste0(found$path, " (", found$version, lacks, ")")
}

# A Python for the environment: the one asked for, or the best there is.
find_python <- function(python = NULL, version = NULL, limits = limits_now()) {
  wanted <- paste0("ivis_spark with ", reticulate_name(), " takes Python 3.10 to ", limits$python,
                   " with a shared library, venv and ssl")
  if (!is.null(version)) {
    asked <- numeric_version(version)
    if (minor(asked) < "3.10" || minor(asked) > limits$python) refuse(wanted, ", python_version is ", version)
  }
  versions <- if (is.null(version)) c("3.11", "3.12", "3.10", "3.13") else as.character(minor(numeric_version(version)))
  pyenv <- file.path(Sys.getenv("PYENV_ROOT", "~/.pyenv"), "versions", paste0(versions, "*"), "bin", "python")
  if (!is.null(python)) {
    pythons <- path.expand(python)
  } else {
    folders <- strsplit(Sys.getenv("PATH"), .Platform$path.sep)[[1]]
    named <- c(paste0("python", versions), "python3", "python")
    pythons <- c(file.path(rep(folders, length(named)), rep(named, each = length(folders))), Sys.glob(pyenv))
    pythons <- pythons[file.exists(pythons) & !duplicated(normalizePath(pythons, mustWork = FALSE))]
  }
  others <- list()
  for (each in pythons) {
    found <- probe(each)
    if (is.null(found)) next
    is_asked <- is.null(version) || startsWith(paste0(found$version, "."), paste0(version, "."))
    if (is_asked && does_fit(found, limits)) return(found)
    others <- c(others, list(described(found)))
  }
  if (!is.null(python)) {
    refuse(wanted, if (!is.null(version)) paste0(" (python_version is ", version, ")"), "; python is ",
           if (length(others) > 0) others[[1]] else paste0(dQuote(python, FALSE), ", which does not run"))
  }
  best <- if (is.null(version)) "3.11" else version
  refuse(wanted, "; this machine has ", if (length(others) > 0) toString(unique(unlist(others))) else "none",
         ". Install one (Debian: apt-get install python", best, "-venv; or reticulate::install_python(\"", best,
         "\")), or pass its path as python")
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
  refuse("the environment ", envname, " is there, but its Python ", problem, ": remove it with ",
         "reticulate::virtualenv_remove(", dQuote(envname, FALSE), "), or pass another envname")
}

# Imports what a fit needs, in the new environment.
check_installed <- function(envname, limits = limits_now()) {
  python <- reticulate::virtualenv_python(envname)
  lines <- run_python(python, c(
    "import importlib",
    "for name in ('numpy', 'sklearn', 'annoy', 'tensorflow', 'keras', 'ivis_spark'):",
    "    try:",
    "        version = getattr(importlib.import_module(name), '__version__', '')",
    "        print('checked', name, version)",
    "    except Exception as err:",
    "        print('lacks', name, '(' + str(err).splitlines()[0] + ')' if str(err) else '')"
  ))
  lacks <- sub("^lacks ", "", grep("^lacks ", lines, value = TRUE))
  if (length(lacks) > 0) refuse("the installation is incomplete: ", envname, " lacks ", paste(lacks, collapse = ", "))
  if (!any(grepl("^checked ivis_spark", lines))) refuse("the installation cannot be checked: ", python, " does not run")
  numpy <- sub("^checked numpy ", "", grep("^checked numpy", lines, value = TRUE))
  if (!limits$numpy2 && !startsWith(numpy, "1.")) {
    refuse(envname, " has NumPy ", numpy, "; ", reticulate_name(), " takes NumPy 1")
  }
}
