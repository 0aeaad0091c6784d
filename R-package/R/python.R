python_package <- function() {
  tryCatch(
    reticulate::import("ivis_spark"),
    error = function(err) {
      stop("the Python package ivis_spark cannot be loaded by ", reticulate::py_config()$python, " (",
           conditionMessage(err), "). Install it with install_ivis(), then restart R", call. = FALSE)
    }
  )
}

#' Install the Python package
#'
#' Installs \code{ivis_spark} and the packages for fitting on one machine into a virtual environment, and uses that
#' environment in this session if no Python is in use yet.
#'
#' @param envname Virtual environment, created if missing.
#' @param package What pip installs: a requirement, or a path to the source.
#' @param ... Passed to \code{reticulate::py_install}.
#' @return The name of the environment, invisibly.
#' @examples
#' \dontrun{
#' install_ivis()
#' }
#' @export
install_ivis <- function(envname = "r-ivis", package = "ivis_spark[cpu]", ...) {
  if (!reticulate::virtualenv_exists(envname)) reticulate::virtualenv_create(envname)
  reticulate::py_install(package, envname = envname, method = "virtualenv", pip = TRUE, ...)
  if (!reticulate::py_available(initialize = FALSE)) reticulate::use_virtualenv(envname, required = TRUE)
  invisible(envname)
}
