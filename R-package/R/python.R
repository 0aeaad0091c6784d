# The Python that R uses: found, and called so that its errors and warnings are those of R.

.onLoad <- function(libname, pkgname) {
  chosen <- nzchar(Sys.getenv(c("RETICULATE_PYTHON", "RETICULATE_PYTHON_ENV", "RETICULATE_PYTHON_FALLBACK")))
  if (!any(chosen) && reticulate::virtualenv_exists("r-ivis")) reticulate::use_virtualenv("r-ivis", required = FALSE)
  known_to_generics <- function(...) {
    registerS3method("fit", "ivis_spark.estimator.ivis.Ivis", fit.ivis_spark.estimator.ivis.Ivis,
                     envir = asNamespace("generics"))
  }
  setHook(packageEvent("generics", "onLoad"), known_to_generics)
  if (isNamespaceLoaded("generics")) known_to_generics()
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
  config <- tryCatch(
    if (reticulate::py_available()) reticulate::py_config() else reticulate::py_discover_config("ivis_spark"),
    error = function(err) NULL
  )
  if (is.null(config)) {  # a Python that reticulate cannot even ask
    python <- setdiff(c(Sys.getenv("RETICULATE_PYTHON"), Sys.which("python3")), "")[1]
    found <- if (!is.na(python)) probe(python)
    if (is.null(found)) return(paste0("R finds no Python", if (!is.na(python)) paste(" that runs:", python), ". ",
                                      advice(python, "Install one")))
    config <- list(python = python, version = format(minor(found$version)))
  }
  problem <- misfit(config)
  if (!is.null(problem)) return(problem)
  missing <- regmatches(message, regexec("No module named '([^']+)'", message))[[1]][2]
  paste0(if (is.na(missing)) paste0("ivis_spark cannot be loaded by ", config$python, " (", in_r(message), ")")
         else paste0("the Python ", config$python, " has no package ", missing),
         ". ", advice(config$python))
}

# How to get a Python that fits, if R uses another one now.
advice <- function(python, install = "Install it") {
  chosen <- Sys.getenv(c("RETICULATE_PYTHON", "RETICULATE_PYTHON_ENV"))
  chosen <- chosen[nzchar(chosen)][1]
  ours <- if (reticulate::virtualenv_exists("r-ivis")) reticulate::virtualenv_python("r-ivis")
  folder <- function(path) normalizePath(dirname(path), mustWork = FALSE)
  if (is.null(ours) || identical(folder(ours), folder(python))) {
    unset <- if (is.null(ours) && !is.na(chosen)) paste0("unset ", names(chosen), " and ")
    return(paste0(install, " with install_ivis(), ", unset, "then restart R. ", from_clone))
  }
  own <- "The environment r-ivis of install_ivis() is there, but "
  if (is.na(chosen)) {
    return(paste0(own, "this session uses ", python, ", chosen by reticulate::use_python() or the like: restart R ",
                  "without that, or with reticulate::use_virtualenv(\"r-ivis\")"))
  }
  paste0(own, names(chosen), " is ", chosen, ": unset it, or set it to ",
         if (names(chosen) == "RETICULATE_PYTHON") ours else "r-ivis", ", then restart R")
}

from_clone <- "From a clone of the repository: install_ivis(package = \"path to the clone\")"

# What this reticulate cannot do with a Python, NULL if all is well.
misfit <- function(config) {
  limits <- limits()
  numpy <- config$numpy$version
  then <- function() paste("Update reticulate, or take another Python.", advice(config$python, "Install one"))
  if (numeric_version(config$version) > limits$python) {
    return(paste0(reticulate_name(), " takes Python up to ", limits$python, ", and ", config$python, " is ",
                  config$version, ". ", then()))
  }
  if (!is.null(numpy) && !limits$numpy2 && numpy >= "2") {
    paste0(reticulate_name(), " takes NumPy 1, and ", config$python, " has NumPy ", numpy, ". ", then())
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
    texts <- unique(texts[!grepl("X does not have valid feature names", texts)])
    for (text in texts) warning(words(text), call. = FALSE)
  })
  tryCatch(call, error = function(err) {
    interrupt <- structure(class = c("interrupt", "condition"), list())
    if (startsWith(conditionMessage(err), "KeyboardInterrupt")) stop(interrupt)
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
  for (name in names(r_names)) text <- gsub(paste0("\\b", name, "\\b"), r_names[[name]], text)
  gsub("a new Ivis\\b", "a new model with ivis()", text)
}

# What methods of Python are called here.
r_names <- c(load_model = "load_ivis", save_model = "save_ivis", score_samples = "predict")
