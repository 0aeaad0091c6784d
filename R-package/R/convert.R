# Converts R objects to what the Python package accepts, and refuses what would arrive there as something else.

refuse <- function(...) stop(..., call. = FALSE)

is_python <- function(value) inherits(value, "python.builtin.object")

quoted <- function(names) {
  more <- if (length(names) > 5) paste(" and", length(names) - 5, "more")
  paste0(paste(dQuote(names[seq_len(min(5, length(names)))], FALSE), collapse = ", "), more)
}

as_argument <- function(value, name) {
  if (is.atomic(value) && length(value) == 1 && is.na(value)) {
    refuse(name, " is NA; omit it for its default, or pass NULL for None of Python")
  }
  if (name == "neighbour_matrix" && !is.null(value)) return(from_zero(value))
  whole <- is.numeric(value) && length(value) == 1 && is.finite(value) && value == round(value)
  if (whole && abs(value) <= .Machine$integer.max) as.integer(value) else value
}

# Row numbers count from 1 in R and from 0 in Python.
from_zero <- function(neighbours) {
  one <- function(numbers) {
    whole <- is.numeric(numbers) && all(is.finite(numbers)) && all(numbers == round(numbers))
    if (!whole || any(numbers < 1) || any(numbers > .Machine$integer.max)) {
      refuse("neighbour_matrix must hold row numbers, counted from 1")
    }
    numbers[] <- numbers - 1
    storage.mode(numbers) <- "integer"
    numbers
  }
  if (is_python(neighbours)) return(neighbours)
  if (is.list(neighbours)) lapply(neighbours, function(numbers) as.list(one(numbers))) else one(neighbours)
}

# Integers and logicals become doubles, because only their NA is a value that Python knows as missing.
as_doubles <- function(values) {
  if (inherits(values, "integer64")) {
    if (!isNamespaceLoaded("bit64")) refuse("integer64 is read by the package bit64: call library(bit64) first")
    shape <- attributes(values)[c("dim", "dimnames")]
    values <- as.double(values)
    attributes(values) <- shape[lengths(shape) > 0]
  } else {
    storage.mode(values) <- "double"
  }
  values
}

# A matrix of doubles, or a sparse one by columns; what is of Python already stays.
as_rows <- function(X) {
  if (is_python(X)) return(X)
  if (inherits(X, "formula")) {
    refuse("X is a formula: pass the features and the labels, as fit(model, iris[, 1:4], iris$Species)")
  }
  if (inherits(X, "denseMatrix")) X <- methods::as(X, "matrix")
  if (inherits(X, "Matrix")) {
    for (kind in c("dMatrix", "generalMatrix", "CsparseMatrix")) X <- methods::as(X, kind)
    places <- function() {
      bad <- which(!is_usable(X@x))
      cbind(X@i[bad] + 1L, findInterval(bad - 1L, X@p))
    }
    check_usable(all(is_usable(X@x)), places, X)
    return(X)
  }
  if (is.data.frame(X)) {
    X <- as.data.frame(X)
    odd <- names(X)[!vapply(X, function(column) is.numeric(column) || is.logical(column), logical(1))]
    if (length(odd) > 0) {
      refuse("X has columns that are not numeric: ", quoted(odd), ". Drop them, or convert them to numbers first")
    }
    if (ncol(X) == 0) refuse("X is a data frame without columns")
    X[] <- lapply(X, as_doubles)
    X <- as.matrix(X)
  }
  if (inherits(X, "sparseVector") || (is.atomic(X) && !is.null(X) && length(dim(X)) < 2)) {
    refuse("X is a vector; pass a matrix or data frame: X[1, , drop = FALSE] is a matrix of one row")
  }
  if (!is.array(X)) {
    refuse("X is ", if (is.null(X)) "NULL" else paste("of class", class(X)[1]),
           "; pass a numeric matrix, a sparse matrix or a data frame, one row per observation")
  }
  if (!is.numeric(X) && !is.logical(X)) refuse("X is a matrix of ", typeof(X), "; it must be numeric")
  X <- as_doubles(X)
  usable <- is_usable(X)
  check_usable(all(usable), function() which(!usable, arr.ind = TRUE), X)
  X
}

# The network takes numbers of 32 bits.
is_usable <- function(values) is.finite(values) & abs(values) <= (2 - 2^-23) * 2^127

check_usable <- function(usable, places, X) {
  if (usable) return(invisible())
  bad <- unname(places())
  bad <- bad[order(bad[, 1]), , drop = FALSE]
  column <- if (is.null(colnames(X))) bad[1, 2] else dQuote(colnames(X)[bad[1, 2]], FALSE)
  refuse("X has NA, NaN, infinity or numbers beyond 3.4e38 in ", length(unique(bad[, 1])), " of ", nrow(X),
         " rows, the first is row ", bad[1, 1], " in column ", column, "; drop or fill them")
}

# Columns in the order of the fit, by name. Python orders what is its own.
in_order <- function(rows, fitted) {
  if (is_python(rows)) return(rows)
  given <- colnames(rows)
  if (is.null(fitted) || identical(given, fitted)) return(rows)
  if (is.null(given)) {
    warning("X has no column names, but the model was fitted with them: its columns are taken in the order of the fit",
            call. = FALSE)
    return(rows)
  }
  missing <- setdiff(fitted, given)
  extra <- setdiff(given, fitted)
  if (length(missing) + length(extra) > 0) {
    parts <- c(if (length(missing) > 0) paste("lacks the columns", quoted(missing)),
               if (length(extra) > 0) paste("has the columns", quoted(extra), "that the fit had not"))
    refuse("X ", paste(parts, collapse = " and "), "; columns are matched by name")
  }
  if (anyDuplicated(given)) refuse("X has duplicate column names: ", quoted(unique(given[duplicated(given)])))
  rows[, match(fitted, given), drop = FALSE]
}

# Labels as numbers, and the classes that the numbers 0, 1, 2, ... stand for, NULL if Y holds numbers. Classes that a
# resumed model knows are matched by name in Python.
as_labels <- function(Y, metric, resumed = NULL) {
  if (is_python(Y)) return(list(numbers = Y))
  if (is.data.frame(Y) || is.list(Y)) {
    refuse("Y is a ", class(Y)[1],
           "; pass a vector or factor, as Y$label or Y[[1]], or as.matrix(Y) for several outputs")
  }
  if (inherits(Y, "Matrix")) Y <- methods::as(Y, "matrix")
  if (inherits(Y, c("Date", "POSIXt"))) Y <- as.character(Y)
  if (!is.factor(Y) && !is.character(Y) && !is.numeric(Y) && !is.logical(Y)) {
    refuse("Y is of class ", class(Y)[1], "; pass a factor, text or dates of classes, or numbers")
  }
  # How many classes the loss takes as one number per row: Inf, 2 or 0.
  most <- reticulate::import("ivis_spark.nn.supervision")$most_classes(metric)
  if (is.factor(Y) || is.character(Y) || (is.logical(Y) && is.infinite(most))) {
    if (length(dim(Y)) > 1) refuse("Y is a matrix of classes; pass a factor or vector with one label per row")
    Y <- factor(Y)  # which drops levels without rows
    if (nlevels(Y) == 0) refuse("all labels are NA: label some rows, or omit Y")
    if (nlevels(Y) > most) {
      loss <- if (is.character(metric)) dQuote(metric, FALSE) else "a function"
      refuse("Y holds ", nlevels(Y), " classes, but supervision_metric is ", loss, ", which takes ",
             if (most == 0) "numbers" else "2 classes", ": omit supervision_metric for classes, or pass numbers")
    }
    words <- levels(Y)[tolower(trimws(levels(Y))) %in% c("", "na", "n/a", "<na>", "nan", "none", "null")]
    if (length(words) > 0) {
      warning("the text ", quoted(words), " is a class of its own; a missing label is NA", call. = FALSE)
    }
    if (is.infinite(most) && !is.null(resumed)) return(list(numbers = text_array(Y)))
    numbers <- as.integer(Y) - 1
    numbers[is.na(numbers)] <- if (is.infinite(most)) -1 else NaN
    return(list(numbers = reticulate::np_array(numbers), classes = if (is.infinite(most)) levels(Y)))
  }
  numbers <- as_doubles(Y)
  if (length(numbers) > 0 && all(is.na(numbers))) refuse("all labels are NA: label some rows, or omit Y")
  if (any(is.infinite(numbers))) refuse("Y has infinity in row ", which(is.infinite(numbers))[1])
  if (is.infinite(most)) {
    known <- unique(as.vector(numbers[!is.na(numbers) & numbers != -1]))
    if (length(known) == 0) refuse("no row has a label: label some rows, or omit Y")
    if (is.null(resumed) && !setequal(known, seq_len(max(known, 0) + 1) - 1)) {
      refuse("Y holds numbers that are not the classes 0, 1, 2, ...: for classes pass factor(Y), ",
             "for numbers to predict make the model with ivis(supervision_metric = \"mae\")")
    }
  }
  numbers[is.na(numbers)] <- NaN
  list(numbers = reticulate::np_array(numbers))
}
