#' Create an ivis model
#'
#' All arguments are those of the Python class \code{ivis_spark.Ivis}, which also documents them:
#' \code{reticulate::py_help(reticulate::import("ivis_spark")$Ivis)}. Omitted arguments keep their
#' defaults. Whole numbers are passed as integers. Names are written in full.
#'
#' An argument of a model is changed by \code{model$epochs <- 50}, which the next \code{fit} follows. It changes the
#' model itself, under every name that it has.
#'
#' @param embedding_dims Dimensions of the embedding.
#' @param k Neighbours per row, 150 by default (15 with \code{preset = "fast"}); at most the number of rows minus 2.
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
#' @seealso What models do: \code{\link{fit}},
#'   \code{\link[=transform.ivis_spark.estimator.ivis.Ivis]{transform}},
#'   \code{\link[=predict.ivis_spark.estimator.ivis.Ivis]{predict}},
#'   \code{\link[=plot.ivis_spark.estimator.ivis.Ivis]{plot}}, \code{\link{save_ivis}} and \code{\link{load_ivis}}.
#'   \code{\link{ivis_arguments}} lists all arguments, \code{\link{install_ivis}} installs the Python package.
#' @examples
#' \dontrun{
#' X <- scale(as.matrix(iris[, 1:4]))
#' model <- fit(ivis(k = 15, epochs = 20), X)
#' plot(model, X, iris$Species)
#' }
#' @export
ivis <- function(..., embedding_dims, k, distance, batch_size, epochs, n_epochs_without_progress, n_trees, ntrees,
                 knn_distance_metric, search_k, precompute, model, supervision_metric, supervision_weight,
                 annoy_index_path, callbacks, build_index_on_disk, neighbour_matrix, verbose) {
  # Only what was given is passed on: the defaults are those of Python and stand there alone. The dots are first, so
  # that no name is completed.
  given <- as.list(match.call(expand.dots = TRUE))[-1]
  if (length(given) > 0 && (is.null(names(given)) || any(names(given) == ""))) {
    refuse("every argument of ivis() needs a name, as ivis(k = 15)")
  }
  arguments <- lapply(given, eval, envir = parent.frame())
  unknown <- setdiff(names(arguments), ivis_arguments())
  if (length(unknown) > 0) {
    refuse("ivis() has no argument ", quoted(unknown), meant(unknown[1]), "; it has: ",
           paste(ivis_arguments(), collapse = ", "))
  }
  from_python(do.call(python_package()$Ivis, Map(as_argument, arguments, names(arguments))))
}

# What an unknown argument is called here, which Python knows.
meant <- function(name) {
  said <- tryCatch(do.call(python_package()$Ivis, stats::setNames(list(1L), name)), error = conditionMessage)
  if (is.character(said)) sub("\\?$", "", regmatches(said, regexpr("; did you mean [^;?]+\\?", said)))
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
  package <- python_package()
  signature <- reticulate::import("inspect")$signature(package$Ivis)
  unlist(reticulate::iterate(signature$parameters$keys(), as.character))
}

#' Fit a model
#'
#' Returns a new model and leaves its argument as it was. A model from \code{\link{load_ivis}} and one with
#' \code{warm_start = TRUE} are fitted further, on a copy: training resumes where it stopped, and classes are matched by
#' name. Any other model is fitted from scratch with its arguments, whether it was fitted before or not.
#'
#' A fit that is interrupted returns, with a warning, what it learnt so far; before the end of its first epoch it is an
#' error.
#'
#' @param object A model made by \code{\link{ivis}} or loaded by \code{\link{load_ivis}}.
#' @param X Matrix, sparse matrix or data frame of numeric columns: one row per observation. All values must be finite.
#'   If the columns have names, those of new rows are matched by name.
#' @param Y Labels, optional: a factor or character vector of classes (\code{NA} is unlabelled, \code{""} is a class of
#'   its own, levels without rows are dropped), dates, each of which is a class, or numbers, as
#'   \code{supervision_metric} needs them (\code{NA} is missing).
#' @param ... \code{shuffle_mode} of the Python method: \code{TRUE}, \code{FALSE} or \code{"batch"}.
#' @return The fitted model, a new object.
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
  goes_on <- resumes(object)
  labels <- if (!is.null(Y)) as_labels(Y, object$supervision_metric, if (goes_on) object$classes_)
  if (goes_on) rows <- in_order(rows, names_at_fit(object)) else check_shape(object, rows)
  if (!is_python(rows) && anyDuplicated(colnames(rows))) {
    refuse("X has duplicate column names: ", quoted(unique(colnames(rows)[duplicated(colnames(rows))])),
           ". Columns are matched by name: drop or rename them, as make.unique(colnames(X)) does")
  }
  check_neighbours(object, rows)
  model <- copy_of(object)
  names <- if (!goes_on && !is_python(rows)) colnames(rows)
  given <- with_names(rows, names)
  values <- with_names(labels$numbers, colnames(Y))
  stopped <- from_python(interrupts(model$fit(given, values, ...)), function(text) in_words(text, labels$classes))
  if (stopped && length(model$loss_history_) <= length(object$loss_history_) * goes_on) {
    refuse("the fit was interrupted before the end of its first epoch: there is no new model")
  }
  remember_names(model, names)
  if (!is.null(labels$classes)) reticulate::py_set_attr(model, "classes_", text_array(labels$classes))
  model
}

# Whether a call of Python is interrupted. Python handles that and keeps what it learnt, but R has the interrupt pending
# too, and would jump out of whatever comes next: here it is given the time to deliver it.
interrupts <- function(call) {
  yes <- function(stopped) TRUE
  early <- tryCatch({call; FALSE}, interrupt = yes, error = function(err) {
    if (!startsWith(conditionMessage(err), "KeyboardInterrupt")) stop(err)
    TRUE
  })
  late <- tryCatch({Sys.sleep(0.1); FALSE}, interrupt = yes)
  early || late
}

resumes <- function(model) !is.null(model$encoder_) && (model$warm_start || model$`_loaded`)

# Another model with the same arguments, and with what was learnt if training resumes.
copy_of <- function(model) {
  if (!resumes(model)) return(reticulate::py_eval("lambda model: type(model)(**model.get_params(deep=False))")(model))
  copied <- from_python(reticulate::import("copy")$copy(model))  # without callbacks, as a pickle
  values <- "callbacks=model.callbacks, loss_history_=list(model.loss_history_)"
  reticulate::py_eval(paste0("lambda copied, model: vars(copied).update(", values, ")"))(copied, model)
  copied
}

# A dense matrix whose columns Python knows by name, as it knows those of a data frame.
with_names <- function(rows, names) {
  dense <- is.matrix(rows) || inherits(rows, "numpy.ndarray")
  if (is.null(names) || !dense) return(rows)
  table <- reticulate::py_eval("type('Table', (__import__('numpy').ndarray,), {})", convert = FALSE)
  view <- (if (is_python(rows)) rows else reticulate::np_array(rows))$view(table)
  reticulate::py_set_attr(view, "columns", text_array(names))
  view
}

# Columns without names count from 1, and a single class has its name.
in_words <- function(text, classes) {
  text <- in_r(text)
  places <- gregexpr("\\[[0-9]+(, [0-9]+)*\\]", text)
  from_one <- function(list) toString(as.integer(strsplit(gsub("[][]", "", list), ", ")[[1]]) + 1L)
  regmatches(text, places) <- lapply(regmatches(text, places), function(lists) vapply(lists, from_one, ""))
  text <- gsub("\\[('[^]]*)\\]", "\\1", text)
  if (length(classes) == 1) text <- sub("of one class, 0:", paste0("of one class, ", classes, ":"), text)
  text
}

#' Embed rows with a fitted model
#'
#' @param _data A fitted model.
#' @param X Rows with the columns that the model was fitted on, in any order if they have names.
#' @param newdata Another name of \code{X}.
#' @param ... Not used.
#' @aliases transform
#' @return Matrix with one row per row of \code{X}, with its row names, and \code{embedding_dims} columns,
#'   \code{"ivis1"}, \code{"ivis2"}, ...
#' @rdname transform
#' @rawNamespace S3method(base::transform, ivis_spark.estimator.ivis.Ivis)
transform.ivis_spark.estimator.ivis.Ivis <- function(`_data`, X, newdata, ...) {
  check_no_others("transform()", dots_names(...), "X, newdata")
  rows <- new_rows(`_data`, X, newdata)
  embedding <- from_python(`_data`$transform(rows))
  if (is.matrix(embedding)) dimnames(embedding) <- list(row_names(rows), paste0("ivis", seq_len(ncol(embedding))))
  embedding
}

#' @rawNamespace S3method(base::print, ivis_spark.estimator.ivis.Ivis)
print.ivis_spark.estimator.ivis.Ivis <- function(x, ...) {
  if (!reticulate::py_is_null_xptr(x)) return(NextMethod())
  cat("<a model that was lost with its session: models are kept with save_ivis() and load_ivis()>\n")
  invisible(x)
}

#' @rawNamespace S3method(base::summary, ivis_spark.estimator.ivis.Ivis)
summary.ivis_spark.estimator.ivis.Ivis <- function(object, ...) {
  print(object)
  invisible(object)
}

#' @rawNamespace S3method("$<-", ivis_spark.estimator.ivis.Ivis)
`$<-.ivis_spark.estimator.ivis.Ivis` <- function(x, name, value) {
  check_alive(x)
  if (!reticulate::py_has_attr(x, name)) {
    refuse("a model has no ", dQuote(name, FALSE), meant(name), "; its arguments are: ",
           paste(ivis_arguments(), collapse = ", "))
  }
  reticulate::py_set_attr(x, name, if (name %in% ivis_arguments()) as_argument(value, name) else value)
  x
}

#' Predict labels with a supervised model
#'
#' @param object A model that was fitted with labels.
#' @param X Rows with the columns that the model was fitted on, in any order if they have names.
#' @param type "prob" for probabilities, or "class" for the most probable class of each row.
#' @param newdata Another name of \code{X}.
#' @param ... Not used.
#' @return Matrix of class probabilities, whose columns are named by the classes, or of values for a regression, with
#'   the column names of \code{Y}; for \code{type = "class"} a factor.
#' @aliases predict
#' @rdname predict
#' @rawNamespace S3method(stats::predict, ivis_spark.estimator.ivis.Ivis)
predict.ivis_spark.estimator.ivis.Ivis <- function(object, X, type = c("prob", "class"), newdata, ...) {
  type <- match.arg(type)
  check_no_others("predict()", dots_names(...), "X, type, newdata")
  rows <- new_rows(object, X, newdata)
  scores <- from_python(object$score_samples(rows))
  rownames(scores) <- row_names(rows)
  classes <- as.character(unlist(object$classes_))
  outputs <- if (length(classes) > 0) classes else as.character(unlist(object$output_names_))
  if (length(outputs) == ncol(scores)) colnames(scores) <- outputs
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
#' in Python are read too. \code{fit} of a loaded model resumes its training. \code{saveRDS}, \code{save} and the image
#' of a session do not hold a model: it is an object of Python, and is lost with the session. A model that was fitted
#' with labels needs them again: \code{fit(load_ivis(path), X, Y)}.
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
  from_python(model$save_model(path.expand(path), overwrite = overwrite))
  invisible(path)
}

#' @rdname save_ivis
#' @export
load_ivis <- function(path) {
  package <- python_package()
  from_python(package$Ivis()$load_model(path.expand(path)))
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
  if (!known && !is.null(names)) reticulate::py_set_attr(model, "feature_names_in_", text_array(names))
}

# An array of objects, where NA is None.
text_array <- function(text) {
  values <- as.list(as.character(text))
  values[is.na(text)] <- list(NULL)
  reticulate::import("numpy", convert = FALSE)$array(values, dtype = "object")
}
