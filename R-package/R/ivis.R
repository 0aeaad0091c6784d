#' Create an ivis model
#'
#' All arguments are those of the Python class \code{ivis_spark.Ivis}, which also documents them:
#' \code{reticulate::py_help(reticulate::import("ivis_spark")$Ivis)}. Omitted arguments keep their
#' defaults. Whole numbers are passed as integers.
#'
#' @param embedding_dims Dimensions of the embedding.
#' @param k Neighbours per row, 150 by default; at most the number of rows minus 2.
#' @param distance Loss: for example "pn", "euclidean", "cosine_pn", "softmax_ratio" or "infonce".
#' @param batch_size Triplets per training step.
#' @param epochs Maximum number of passes over the rows.
#' @param n_epochs_without_progress Epochs without a lower loss before training stops.
#' @param n_trees,search_k Trees of an Annoy index, and nodes inspected per query.
#' @param ntrees Deprecated name of \code{n_trees}.
#' @param knn_distance_metric Distance between neighbours: "angular", "euclidean", "manhattan", "hamming" or "dot".
#' @param precompute Whether all neighbours are searched before training.
#' @param model Base network: "szubert", "hinton" or "maaten", or a Keras model.
#' @param supervision_metric Keras loss of the labels, for example "sparse_categorical_crossentropy" or "mae".
#' @param supervision_weight Weight of the supervised loss, between 0 and 1.
#' @param annoy_index_path Path of an Annoy index to use instead of a search.
#' @param callbacks List of Keras callbacks.
#' @param build_index_on_disk Whether an Annoy index is built in its file.
#' @param neighbour_matrix Matrix of neighbours, one row per row of \code{X}, as row numbers counted from 1; or a list
#'   with one vector of row numbers per row.
#' @param verbose 0 shows no progress.
#' @param ... Further arguments of the Python class by name, for example \code{random_state}, \code{learning_rate} or
#'   \code{margin}; \code{ivis_arguments()} lists all.
#' @return A model: the Python object. Its methods, as \code{model$fit(X)}, can be called too, but miss what
#'   \code{fit(model, X)} adds: they do not know \code{NA} of integers and logicals, factors or names of columns.
#' @seealso \code{\link{fit}}, \code{\link{transform}}, \code{\link{save_ivis}}, \code{\link{install_ivis}}
#' @examples
#' \dontrun{
#' X <- scale(as.matrix(iris[, 1:4]))
#' model <- fit(ivis(k = 15, epochs = 20), X)
#' plot(transform(model, X), col = iris$Species)
#' }
#' @export
ivis <- function(embedding_dims, k, distance, batch_size, epochs, n_epochs_without_progress, n_trees, ntrees,
                 knn_distance_metric, search_k, precompute, model, supervision_metric, supervision_weight,
                 annoy_index_path, callbacks, build_index_on_disk, neighbour_matrix, verbose, ...) {
  # Only what was given is passed on: the defaults are those of Python and stand there alone.
  given <- as.list(match.call(expand.dots = TRUE))[-1]
  unnamed <- names(given) == ""
  if (any(unnamed)) refuse("every argument of ivis() needs a name")
  arguments <- lapply(given, eval, envir = parent.frame())
  unknown <- setdiff(names(arguments), ivis_arguments())
  if (length(unknown) > 0) {
    refuse("ivis() has no argument ", quoted(unknown), "; it has: ", paste(ivis_arguments(), collapse = ", "))
  }
  arguments <- Map(as_argument, arguments, names(arguments))
  if (!is.null(arguments$neighbour_matrix)) {
    arguments$neighbour_matrix <- from_zero(arguments$neighbour_matrix)
  }
  do.call(python_package()$Ivis, arguments)
}

#' List the arguments of ivis()
#'
#' @return Names of all arguments that the installed version of the Python package takes.
#' @examples
#' \dontrun{
#' ivis_arguments()
#' }
#' @export
ivis_arguments <- function() {
  signature <- reticulate::import("inspect")$signature(python_package()$Ivis)
  unlist(reticulate::iterate(signature$parameters$keys(), as.character))
}

#' Fit a model
#'
#' @param object A model made by \code{\link{ivis}}.
#' @param X Matrix, sparse matrix or data frame of numeric columns: one row per observation. All values must be finite.
#'   If the columns have names, those of new rows are matched by name.
#' @param Y Labels, optional: a factor or character vector of classes (\code{NA} is unlabelled, levels without rows are
#'   dropped), or numbers, as \code{supervision_metric} needs them (\code{NA} is missing).
#' @param ... \code{shuffle_mode} of the Python method.
#' @return The fitted model.
#' @examples
#' \dontrun{
#' X <- scale(as.matrix(iris[, 1:4]))
#' model <- fit(ivis(k = 15), X, iris$Species)
#' }
#' @export
fit <- function(object, X, Y = NULL, ...) {
  UseMethod("fit")
}

#' @rdname fit
#' @export
fit.ivis_spark.estimator.ivis.Ivis <- function(object, X, Y = NULL, ...) {
  check_alive(object)
  check_no_others("fit()", setdiff(dots_names(...), "shuffle_mode"), "X, Y, shuffle_mode")
  rows <- as_rows(X)
  labels <- if (!is.null(Y)) as_labels(Y, object$supervision_metric)
  goes_on <- !is.null(object$encoder_) && (object$warm_start || object$`_loaded`)
  if (goes_on) {
    rows <- in_order(rows, names_at_fit(object))
  } else {
    check_shape(object, rows)
    names <- if (!is_python(rows)) colnames(rows)
    on.exit(remember_names(object, names))  # an interrupted fit leaves a model too
  }
  check_neighbours(object, rows)
  without_names_warning(rows, object$fit(rows, labels$numbers, ...))
  if (!is.null(labels$classes)) object$classes_ <- text_array(labels$classes)
  object
}

#' Embed rows with a fitted model
#'
#' @param _data A fitted model.
#' @param X Rows with the columns that the model was fitted on, in any order if they have names.
#' @param newdata Another name of \code{X}.
#' @param ... Not used.
#' @return Matrix with one row per row of \code{X}, with its row names, and \code{embedding_dims} columns.
#' @rdname transform
#' @rawNamespace S3method(base::transform, ivis_spark.estimator.ivis.Ivis)
transform.ivis_spark.estimator.ivis.Ivis <- function(`_data`, X, newdata, ...) {
  check_no_others("transform()", dots_names(...), "X, newdata")
  rows <- new_rows(`_data`, X, newdata)
  embedding <- without_names_warning(rows, `_data`$transform(rows))
  if (is.matrix(embedding)) {
    dimnames(embedding) <- list(row_names(rows), as.character(unlist(`_data`$get_feature_names_out())))
  }
  embedding
}

#' Predict labels with a supervised model
#'
#' @param object A model that was fitted with labels.
#' @param X Rows with the columns that the model was fitted on, in any order if they have names.
#' @param type "prob" for probabilities, or "class" for the most probable class of each row.
#' @param newdata Another name of \code{X}.
#' @param ... Not used.
#' @return Matrix of class probabilities, whose columns are named by the classes, or of values for a regression; for
#'   \code{type = "class"} a factor.
#' @rdname predict
#' @rawNamespace S3method(stats::predict, ivis_spark.estimator.ivis.Ivis)
predict.ivis_spark.estimator.ivis.Ivis <- function(object, X, type = c("prob", "class"), newdata, ...) {
  type <- match.arg(type)
  check_no_others("predict()", dots_names(...), "X, type, newdata")
  rows <- new_rows(object, X, newdata)
  scores <- without_names_warning(rows, object$score_samples(rows))
  rownames(scores) <- row_names(rows)
  classes <- as.character(unlist(object$classes_))
  if (length(classes) == ncol(scores)) colnames(scores) <- classes
  if (type == "prob") return(scores)
  if (length(classes) != ncol(scores)) {
    refuse("the model was not fitted on classes, so that it predicts numbers: omit type = \"class\"")
  }
  best <- factor(classes[max.col(scores, ties.method = "first")], levels = classes)
  names(best) <- rownames(scores)
  best
}

#' Save and load a model
#'
#' A saved model is a folder of arrays, JSON and Keras files; loading one runs no code from it. Models saved by ivis 2
#' in Python are read too. \code{saveRDS}, \code{save} and the image of a session do not hold a model: it is an object
#' of Python, and is lost with the session.
#'
#' @param model A fitted model.
#' @param path Folder.
#' @param overwrite Whether a folder that is there is replaced.
#' @return \code{save_ivis} returns the path invisibly, \code{load_ivis} the model.
#' @examples
#' \dontrun{
#' save_ivis(model, "iris.ivis")
#' model <- load_ivis("iris.ivis")
#' }
#' @export
save_ivis <- function(model, path, overwrite = FALSE) {
  check_alive(model)
  if (is.null(model$encoder_)) refuse("the model is not fitted: call fit() before save_ivis()")
  model$save_model(path.expand(path), overwrite = overwrite)
  invisible(path)
}

#' @rdname save_ivis
#' @export
load_ivis <- function(path) {
  python_package()$Ivis()$load_model(path.expand(path))
}

dots_names <- function(...) {
  names <- names(list(...))
  if (is.null(names)) rep("", ...length()) else names
}

check_no_others <- function(verb, others, allowed) {
  if (length(others) == 0) return(invisible())
  others <- if ("" %in% others) "more without a name" else quoted(others)
  refuse(verb, " has no argument ", others, "; it has: ", allowed)
}

check_alive <- function(model) {
  if (!inherits(model, "ivis_spark.estimator.ivis.Ivis")) refuse("this is no model of ivis(), but ", class(model)[1])
  if (reticulate::py_is_null_xptr(model)) {
    refuse("the model was lost: saveRDS(), save() and the image of a session do not hold objects of Python. ",
           "Fit it again, and keep it with save_ivis() and load_ivis()")
  }
}

new_rows <- function(model, X, newdata) {
  check_alive(model)
  if (missing(X) == missing(newdata)) refuse("pass the rows as X or as newdata")
  in_order(as_rows(if (missing(X)) newdata else X), names_at_fit(model))
}

row_names <- function(rows) if (!is_python(rows)) rownames(rows)

check_shape <- function(model, rows) {
  if (!is_python(rows) && length(dim(rows)) > 2 && is.character(model$model)) {
    refuse("X has ", length(dim(rows)), " dimensions; the network ", dQuote(model$model, FALSE), " takes a matrix: ",
           "flatten X, or pass a Keras model that takes its shape")
  }
}

check_neighbours <- function(model, rows) {
  neighbours <- model$neighbour_matrix
  if (is_python(rows) || !(is.numeric(neighbours) || is.list(neighbours))) return(invisible())
  last <- max(unlist(neighbours), 0) + 1
  if (last > nrow(rows)) {
    refuse("neighbour_matrix holds row numbers up to ", last, "; X has rows 1 to ", nrow(rows))
  }
}

# Python keeps names of columns with the model, and saves them, but sees them on data frames only.
names_at_fit <- function(model) {
  if (reticulate::py_has_attr(model, "feature_names_in_")) as.character(unlist(model$feature_names_in_))
}

remember_names <- function(model, names) {
  known <- is.null(model$encoder_) || reticulate::py_has_attr(model, "feature_names_in_")
  if (!known && !is.null(names)) model$feature_names_in_ <- text_array(names)
}

text_array <- function(text) reticulate::import("numpy", convert = FALSE)$array(as.list(text), dtype = "object")

# The columns of rows of R are in the order of the fit already, so that their lack of names in Python is no news.
without_names_warning <- function(rows, call) {
  if (is_python(rows)) return(call)
  warnings <- reticulate::import("warnings")
  with(warnings$catch_warnings(), {
    warnings$filterwarnings("ignore", message = "X does not have valid feature names")
    call
  })
}
