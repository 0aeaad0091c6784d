# Converts R objects to what the Python package accepts.

as_whole <- function(value) {
  whole <- is.numeric(value) && length(value) == 1 && is.finite(value) && value == round(value)
  if (whole && abs(value) <= .Machine$integer.max) as.integer(value) else value
}

# Row numbers count from 1 in R and from 0 in Python.
from_zero <- function(neighbours) {
  one <- function(numbers) {
    if (!is.numeric(numbers) || anyNA(numbers) || any(numbers < 1) || any(numbers != round(numbers))) {
      stop("neighbour_matrix must hold row numbers, counted from 1", call. = FALSE)
    }
    numbers[] <- numbers - 1
    storage.mode(numbers) <- "integer"
    numbers
  }
  if (is.list(neighbours)) lapply(neighbours, function(numbers) as.list(one(numbers))) else one(neighbours)
}

as_rows <- function(X) {
  if (inherits(X, "Matrix")) {
    return(methods::as(X, "CsparseMatrix"))
  }
  if (is.data.frame(X)) {
    odd <- names(X)[!vapply(X, function(column) is.numeric(column) || is.logical(column), logical(1))]
    if (length(odd) > 0) {
      stop("X has columns that are not numeric: ", paste(odd, collapse = ", "),
           ". Drop them, or convert them to numbers first", call. = FALSE)
    }
    X <- as.matrix(X)
  }
  if (is.array(X) && !is.numeric(X) && !is.logical(X)) {
    stop("X is a matrix of ", typeof(X), "; it must be numeric", call. = FALSE)
  }
  X
}

as_labels <- function(Y) {
  if (is.character(Y) || is.logical(Y)) Y <- factor(Y)
  if (is.factor(Y)) {
    codes <- as.integer(Y) - 1L
    codes[is.na(codes)] <- -1L
    Y <- codes
  }
  reticulate::np_array(Y)
}
