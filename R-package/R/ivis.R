#' Create an ivis model
#'
#' All arguments are those of the Python class \code{ivis_spark.Ivis}, which also documents them:
#' \code{reticulate::py_help(reticulate::import("ivis_spark")$Ivis)}. Omitted arguments keep their
#' defaults. Whole numbers are passed as integers.
#'
#' @param embedding_dims Dimensions of the embedding.
#' @param k Neighbours per row; at most the number of rows minus 2.
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
#' @return A model: the Python object, so that \code{model$fit(X)} works as well as \code{fit(model, X)}.
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
  if (any(unnamed)) stop("every argument of ivis() needs a name", call. = FALSE)
  arguments <- lapply(given, eval, envir = parent.frame())
  unknown <- setdiff(names(arguments), ivis_arguments())
  if (length(unknown) > 0) {
    stop("ivis() has no argument ", paste(dQuote(unknown, FALSE), collapse = ", "), "; it has: ",
         paste(ivis_arguments(), collapse = ", "), call. = FALSE)
  }
  arguments <- lapply(arguments, as_whole)
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
#' @param X Matrix, sparse matrix or data frame of numeric columns: one row per observation.
#' @param Y Labels, optional: a factor or character vector of classes (\code{NA} is unlabelled), or numbers, as
#'   \code{supervision_metric} needs them.
#' @param ... Passed to the Python method, for example \code{shuffle_mode}.
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
  rows <- as_rows(X)
  if (is.null(Y)) return(object$fit(rows, ...))
  fitted <- object$fit(rows, as_labels(Y), ...)
  if ((is.factor(Y) || is.character(Y) || is.logical(Y)) && !is.null(fitted$classes_)) {
    # Python was given codes, which keep the order of the levels.
    names <- levels(as.factor(Y))[seq_along(fitted$classes_)]
    fitted$classes_ <- reticulate::np_array(names)
  }
  fitted
}

#' Embed rows with a fitted model
#'
#' @param _data A fitted model.
#' @param X Rows with the columns that the model was fitted on.
#' @param ... Not used.
#' @return Matrix with one row per row of \code{X} and \code{embedding_dims} columns.
#' @rdname transform
#' @rawNamespace S3method(base::transform, ivis_spark.estimator.ivis.Ivis)
transform.ivis_spark.estimator.ivis.Ivis <- function(`_data`, X, ...) {
  `_data`$transform(as_rows(X))
}

#' Predict labels with a supervised model
#'
#' @param object A model that was fitted with labels.
#' @param X Rows with the columns that the model was fitted on.
#' @param ... Not used.
#' @return Matrix of class probabilities, whose columns are named by the classes, or of values for a regression.
#' @rdname predict
#' @rawNamespace S3method(stats::predict, ivis_spark.estimator.ivis.Ivis)
predict.ivis_spark.estimator.ivis.Ivis <- function(object, X, ...) {
  scores <- object$score_samples(as_rows(X))
  classes <- unlist(object$classes_)
  if (length(classes) == ncol(scores)) colnames(scores) <- as.character(classes)
  scores
}

#' Save and load a model
#'
#' A saved model is a folder of arrays, JSON and Keras files; loading one runs no code from it. Models saved by ivis 2
#' in Python are read too.
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
  model$save_model(path.expand(path), overwrite = overwrite)
  invisible(path)
}

#' @rdname save_ivis
#' @export
load_ivis <- function(path) {
  python_package()$Ivis()$load_model(path.expand(path))
}
