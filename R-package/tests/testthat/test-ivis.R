skip_without_python <- function() {
  skip_if_not(reticulate::py_module_available("ivis_spark"), "Python has no ivis_spark: install_ivis()")
}

X <- scale(as.matrix(iris[, 1:4]))

# Models that several tests embed with; each test that needs other rows or labels fits its own.
fitted <- new.env()
quick <- function(..., epochs = 2) ivis(k = 15, epochs = epochs, verbose = 0, ...)
named_model <- function() {
  if (is.null(fitted$named)) fitted$named <- fit(quick(), X)
  fitted$named
}

test_that("arguments are those of Python", {
  skip_without_python()
  named <- setdiff(names(formals(ivis)), "...")
  expect_equal(named, ivis_arguments()[seq_along(named)])
  expect_error(ivis(no_such = 1), "no argument .no_such.; it has: embedding_dims, k")
  expect_error(ivis(k = NA), "k is NA")
  expect_identical(ivis(k = 15)$k, 15L)
  arguments <- reticulate::import("ivis_spark.estimator.settings")$with_preset(ivis()$get_params())
  expect_identical(arguments$k, 150L, info = "which ?ivis says")
  expect_identical(ivis(knn_distance_metric = "euclidean")$knn_distance_metric, "euclidean")
})

test_that("a model is fitted, embeds, is saved and loaded", {
  skip_without_python()
  model <- named_model()
  embedding <- transform(model, X)
  expect_equal(dim(embedding), c(150, 2))
  expect_true(all(is.finite(embedding)))
  expect_equal(model$transform(X), unname(embedding))
  expect_equal(transform(model, as.data.frame(X)), embedding)
  expect_equal(transform(model, newdata = X), embedding)
  path <- file.path(tempfile(), "model")
  dir.create(dirname(path))
  save_ivis(model, path)
  loaded <- load_ivis(path)
  expect_equal(transform(loaded, X), embedding, tolerance = 1e-6)
  expect_equal(transform(loaded, X[, 4:1]), embedding, tolerance = 1e-6)
  expect_error(fit(loaded, X[, -1]), "lacks the columns .Sepal.Length")
})

test_that("a model that is lost, or not fitted, is named as such", {
  skip_without_python()
  file <- tempfile()
  saveRDS(named_model(), file)
  lost <- readRDS(file)
  expect_error(transform(lost, X), "save_ivis")
  expect_output(print(lost), "save_ivis")
  expect_error(transform(ivis(), X), "`fit` or `load_ivis` before `transform`, `predict` and `plot`")
  expect_output(expect_invisible(summary(named_model())), "^Ivis\\(")
  expect_error(predict(lost, X), "save_ivis")
  expect_error(fit(lost, X), "save_ivis")
  expect_error(save_ivis(lost, tempfile()), "save_ivis")
  expect_error(save_ivis(ivis(), tempfile()), "not fitted")
})

test_that("columns are matched by name", {
  skip_without_python()
  model <- named_model()
  embedding <- transform(model, X)
  expect_equal(transform(model, X[, 4:1]), embedding)
  expect_equal(transform(model, as.data.frame(X)[, c(2, 1, 4, 3)]), embedding)
  renamed <- X
  colnames(renamed)[2] <- "other"
  expect_error(transform(model, renamed), "lacks the columns .Sepal.Width. and has the columns .other.")
  expect_error(transform(model, cbind(X, more = 1)), "has the columns .more.")
  expect_warning(by_place <- transform(model, unname(X)), "no column names")
  expect_equal(by_place, embedding)
  frame <- reticulate::r_to_py(as.data.frame(X)[, 4:1])
  expect_silent(by_python <- transform(model, frame))
  expect_equal(by_python, embedding)
  twice <- X
  colnames(twice) <- c("a", "a", "b", "c")
  expect_error(fit(quick(), twice), "duplicate column names: .a.. .*make.unique")
  expect_error(transform(model, cbind(X, X[, 1, drop = FALSE])), "duplicate column names: .Sepal.Length.")
  expect_silent(transform(fit(quick(), unname(X)), X))
})

test_that("a fit that is refused or interrupted leaves the model as it was", {
  skip_without_python()
  other <- X
  colnames(other) <- letters[1:4]
  model <- fit(quick(), X)
  expect_error(fit(model, other, iris$Species[1:5]), "^Y has 5 labels for 150 rows of X; pass one label per row$")
  expect_equal(dim(transform(model, X)), c(150, 2))
  interrupted <- function(source) {
    on_epoch_end <- reticulate::py_eval(source)
    quick(callbacks = list(reticulate::import("keras")$callbacks$LambdaCallback(on_epoch_end = on_epoch_end)))
  }
  model <- interrupted("lambda epoch, logs: 1 / 0")
  expect_error(fit(model, other), "division")
  expect_error(transform(model, X), "not")
  model <- interrupted("lambda epoch, logs: (_ for _ in ()).throw(KeyboardInterrupt())")
  expect_warning(stopped <- fit(model, other), "interrupted after 1 epochs: the model keeps")
  expect_error(transform(stopped, X), "lacks the columns .a.")
  expect_null(model$encoder_)
  on_epoch_begin <- reticulate::py_eval("lambda epoch, logs: (_ for _ in ()).throw(KeyboardInterrupt())")
  early <- list(reticulate::import("keras")$callbacks$LambdaCallback(on_epoch_begin = on_epoch_begin))
  expect_error(fit(quick(callbacks = early), other), "interrupted before the end of its first epoch")
})

test_that("fit returns a new model and leaves its argument as it was", {
  skip_without_python()
  base <- quick()
  first <- fit(base, X)
  embedding <- transform(first, X)
  second <- fit(base, X[, 1:2], iris$Species)
  third <- fit(first, X[, 1:3])
  expect_null(base$encoder_)
  expect_identical(transform(first, X), embedding)
  expect_equal(lengths(list(first$loss_history_, second$loss_history_, third$loss_history_)), c(2, 2, 2))
  expect_identical(transform(fit(first, X), X), embedding)
  path <- tempfile()
  save_ivis(first, path)
  loaded <- load_ivis(path)
  warm <- fit(quick(warm_start = TRUE), X)
  for (start in list(loaded, warm)) {
    before <- transform(start, X)
    longer <- fit(start, X)
    expect_identical(transform(start, X), before)
    expect_equal(lengths(list(start$loss_history_, longer$loss_history_)), c(2, 4))
    expect_gt(max(abs(transform(longer, X) - before)), 1e-3)
  }
  start <- load_ivis(path)
  start$learning_rate <- 1e-12
  expect_equal(transform(fit(start, X), X), embedding, tolerance = 1e-4, info = "training resumes where it was")
})

test_that("classes are matched by name where training resumes", {
  skip_without_python()
  path <- tempfile()
  save_ivis(fit(quick(epochs = 20), X, factor(iris$Species, c("virginica", "setosa", "versicolor"))), path)
  model <- load_ivis(path)
  model$learning_rate <- 1e-12
  labels <- as.character(iris$Species)
  labels[c(3, 99)] <- NA
  again <- fit(model, X, replace(labels, labels == "setosa", NA))
  expect_equal(colnames(predict(again, X)), c("virginica", "setosa", "versicolor"))
  expect_equal(predict(again, X), predict(model, X), tolerance = 1e-3)
  others <- factor(iris$Species, labels = c("a", "b", "c"))
  expect_error(fit(model, X, others), "classes 'a', 'b', 'c'; .*classes 'virginica', 'setosa', 'versicolor'")
  expect_error(fit(model, X, as.integer(iris$Species) - 1), "classes 0, 1, 2; .*'virginica'")
})

test_that("names of arguments and attributes are written in full and are checked", {
  skip_without_python()
  expect_error(ivis(n_epochs = 50), "no argument .n_epochs.; did you mean epochs; it has")
  expect_error(ivis(neighbour = 15), "no argument .neighbour.; did you mean neighbour")
  expect_error(ivis(list(k = 15)), "needs a name")
  expect_error(ivis(15, k = 2), "needs a name")
  model <- quick()
  expect_error(model$epoch <- 3, "no .epoch.; did you mean epochs")
  model$epochs <- 3
  expect_identical(model$epochs, 3L)
  expect_error(fit(model, X, shuffle_mode = "batchy"), "^shuffle_mode='batchy' is not known")
  expect_equal(dim(transform(fit(quick(epochs = 1), X, shuffle_mode = FALSE), X)), c(150, 2))
})

test_that("errors and warnings of Python are those of R", {
  skip_without_python()
  path <- tempfile()
  save_ivis(named_model(), path)
  expect_error(save_ivis(named_model(), path), "pass overwrite = TRUE to replace it, or another path$")
  save_ivis(named_model(), path, overwrite = TRUE)
  expect_error(fit(ivis(k = 0), X), "^k")
  wide <- X
  wide[, 3] <- 1e4 * wide[, 3]
  unscaled <- "by these alone: 'Petal.Length'. Scale X, for example with scale(X), unless"
  expect_warning(fit(quick(epochs = 1), wide), unscaled, fixed = TRUE)
  expect_warning(fit(quick(epochs = 1), as.data.frame(wide)), unscaled, fixed = TRUE)
  expect_warning(fit(quick(epochs = 1), unname(wide)), "by these alone: 3. Scale X", fixed = TRUE)
  expect_silent(suppressWarnings(fit(quick(epochs = 1), wide)))
})

test_that("a model is plotted with a legend", {
  skip_without_python()
  file <- tempfile(fileext = ".pdf")
  grDevices::pdf(file)
  on.exit(grDevices::dev.off())
  expect_equal(plot(named_model(), X), transform(named_model(), X))
  expect_silent(plot(named_model(), X, iris$Species, main = "iris", cex = 1))
  expect_silent(plot(named_model(), X, replace(iris$Sepal.Width, 3, NA)))
  expect_silent(plot(named_model(), X, factor(replace(as.character(iris$Species), 1:99, NA))))
  nothing <- rep(NA, 150)
  expect_silent(plot(named_model(), X, nothing))
  expect_silent(plot(named_model(), X, replace(nothing, 1, 2), legend = FALSE))
  expect_silent(plot(named_model(), X, iris$Species, col = 1:3, las = 1))
  expect_equal(graphics::par("mai")[4], 0.42, info = "margins are as before")
  expect_error(plot(named_model(), X, labelz = iris$Species), "no argument .labelz.; it has: X, labels, dims, legend")
  expect_error(plot(named_model(), X, iris$Species, col = "red"), "1 colours for 3 classes")
  expect_error(plot(named_model(), X, legend = "topright"), "TRUE or FALSE")
  expect_error(plot(named_model()), "plot\\(model, X")
  expect_error(plot(named_model(), X, 1:3), "3 values for 150 rows")
  expect_error(plot(named_model(), X, dims = 2:3), "2 dimensions")
})

test_that("a legend has the room beside the map, and rows without a label", {
  grDevices::pdf(NULL)
  on.exit(grDevices::dev.off())
  expect_equal(colours_of(nothing <- rep(NA, 3), NULL), list(rows = "grey70"))
  key <- colours_of(c("a", NA, "b"), c("red", "blue"))
  expect_equal(key, list(rows = c("red", "grey70", "blue"), text = c("a", "b", "no label"),
                         col = c("red", "blue", "grey70")))
  graphics::plot.new()
  expect_equal(legend_that_fits(key)[c("text", "columns")], list(text = key$text, columns = 1))
  many <- legend_that_fits(colours_of(c(sprintf("a class with a long name %d", 1:900), NA), NULL))
  expect_lte(many$width, 0.45 * graphics::par("fin")[1])
  expect_equal(utils::tail(many$text, 2), c("no label", paste("and", 901 - length(many$text) + 1, "more")))
})

test_that("an interrupt that R has pending after a call of Python is delivered there", {
  skip_on_os("windows")
  expect_false(interrupts(1))
  expect_true(interrupts(tools::pskill(Sys.getpid(), tools::SIGINT)))
  expect_error(interrupts(stop("other")), "other")
})

test_that("models are fitted by the generic of generics too", {
  skip_if_not_installed("generics")
  skip_without_python()
  generic <- getExportedValue("generics", "fit")
  expect_equal(dim(transform(generic(quick(epochs = 1), X), X)), c(150, 2))
})

test_that("an embedding keeps the names of rows, and names its columns", {
  skip_without_python()
  named <- X
  rownames(named) <- paste("plant", seq_len(150))
  expect_equal(dimnames(transform(named_model(), named)), list(rownames(named), c("ivis1", "ivis2")))
  expect_equal(rownames(transform(named_model(), as.data.frame(named))), rownames(named))
  expect_equal(dim(transform(named_model(), X[1, , drop = FALSE])), c(1, 2))
})

test_that("missing values are refused with the row and the column, whatever their type", {
  skip_without_python()
  frame <- as.data.frame(matrix(as.integer(100 * X), 150, dimnames = dimnames(X)))
  frame$flag <- frame[[1]] > 0
  expect_warning(model <- fit(quick(), frame), "scale\\(X\\)")
  expect_error(fit(quick(), replace(X, 7, Inf)), "in 1 of 150 rows, the first is row 7 in column .Sepal.Length.")
  expect_error(transform(named_model(), replace(X, 8, 1e39)), "row 8 in column .Sepal.Length.")
  for (column in c("Petal.Width", "flag")) {
    broken <- frame
    broken[[column]][c(3, 9)] <- NA
    wanted <- paste0("in 2 of 150 rows, the first is row 3 in column .", column)
    expect_error(fit(quick(), broken), wanted)
    expect_error(transform(model, broken), wanted)
    expect_error(predict(model, as.matrix(broken)), wanted)
  }
  logical <- unname(X) > 0
  logical[2, 4] <- NA
  expect_error(fit(quick(), logical), "row 2 in column 4")
  skip_if_not_installed("Matrix")
  sparse <- Matrix::Matrix(X * (X > 1), sparse = TRUE)
  sparse[5, 3] <- NA
  expect_error(fit(quick(), sparse), "row 5 in column .Petal.Length.")
  expect_error(fit(quick(), sparse > 0), "row 5 in column .Petal.Length.")
})

test_that("integer64 is read as its numbers", {
  skip_without_python()
  skip_if_not_installed("bit64")
  frame <- as.data.frame(round(100 * X))
  as_long <- getExportedValue("bit64", "as.integer64")
  long <- frame
  long[] <- lapply(frame, as_long)
  model <- suppressWarnings(fit(quick(), frame))
  expect_equal(transform(model, long), transform(model, frame))
  long[4, 2] <- NA
  expect_error(transform(model, long), "row 4 in column .Sepal.Width.")
  target <- fit(quick(supervision_metric = "mae", epochs = 1), X, as_long(1:150))
  expect_lt(target$loss_history_[1], 1000)
})

test_that("factors are classes and NA is unlabelled", {
  skip_without_python()
  labels <- iris$Species
  labels[seq(1, 150, 3)] <- NA
  levels(labels) <- c("setosa", "versicolor", "virginica")
  labels <- factor(labels, levels = c("none such", "virginica", levels(iris$Species)[1:2]))
  model <- fit(quick(epochs = 30), X, labels)
  scores <- predict(model, X)
  expect_equal(dim(scores), c(150, 3))
  expect_equal(colnames(scores), c("virginica", "setosa", "versicolor"))
  classes <- predict(model, newdata = X, type = "class")
  expect_equal(levels(classes), colnames(scores))
  expect_gt(mean(as.character(classes) == iris$Species), 0.8)
  path <- file.path(tempfile(), "named.ivis")
  save_ivis(model, path)
  loaded <- load_ivis(path)
  expect_equal(predict(loaded, X[, 4:1], type = "class"), classes)
  expect_error(predict(model, X, kind = "class"), "no argument .kind.")
  expect_error(transform(model, X, type = "class"), "no argument .type.")
  expect_error(fit(quick(), X, NULL, "batch"), "no argument more without a name")
  expect_error(transform(model), "X or as newdata")
})

test_that("whole numbers with NA are classes or values, and the others are unlabelled", {
  skip_without_python()
  codes <- as.integer(iris$Species) - 1L
  codes[c(2, 77)] <- NA
  model <- fit(quick(), X, codes)
  expect_equal(levels(predict(model, X, type = "class")), c("0", "1", "2"))
  values <- rep(c(10L, NA), 75)
  model <- fit(quick(supervision_metric = "mae", supervision_weight = 1, epochs = 1), X, values)
  expect_lt(model$loss_history_[1], 100)
  expect_error(predict(model, X, type = "class"), "not fitted on classes")
})

test_that("several values to predict keep their names, also in a saved model", {
  skip_without_python()
  model <- fit(quick(supervision_metric = "mae"), X, X[, 2:3])
  expect_equal(colnames(predict(model, X)), colnames(X)[2:3])
  path <- tempfile()
  save_ivis(model, path)
  expect_equal(predict(load_ivis(path), X), predict(model, X), tolerance = 1e-5)
})

test_that("dates are classes in their order", {
  skip_without_python()
  day <- as.Date("2026-01-30") + as.integer(iris$Species)
  day[5] <- NA
  expect_equal(colnames(predict(fit(quick(), X, day), X)), c("2026-01-31", "2026-02-01", "2026-02-02"))
  expect_error(fit(quick(supervision_metric = "mae"), X, day), "3 classes")
})

test_that("labels that do not fit the loss are refused", {
  skip_without_python()
  expect_error(fit(quick(supervision_metric = "mae"), X, iris$Species), "3 classes, .*\"mae\", which takes numbers")
  expect_error(fit(quick(supervision_metric = "mse"), X, as.character(iris$Species)), "takes numbers")
  expect_error(fit(quick(supervision_metric = "hinge"), X, iris$Species), "takes 2 classes")
  expect_error(fit(quick(), X, as.integer(iris$Species)), "factor\\(Y\\)")
  expect_error(fit(quick(), X, as.numeric(iris$Species)), "factor\\(Y\\)")
  expect_error(fit(quick(), X, X[, 1]), "mae")
  expect_error(fit(quick(), X, iris["Species"]), "data.frame; pass a vector or factor")
  expect_error(fit(quick(), X, rep(NA, 150)), "all labels are NA")
  expect_error(fit(quick(supervision_metric = "mae"), X, rep(NA_real_, 150)), "all labels are NA")
  expect_error(fit(quick(supervision_metric = "mae"), X, rep(NA, 150)), "all labels are NA")
  expect_warning(fit(quick(epochs = 1), X, rep(c("", "a", "b"), 50)), "the text .. is a class of its own")
  suppressWarnings(expect_warning(fit(quick(epochs = 1), X, rep("only", 150)), "of one class, only"))
  expect_error(fit(quick(), X, y = iris$Species), "no argument .y.; it has: X, Y")
  two <- factor(iris$Species == "setosa")
  two[1] <- NA
  expect_equal(dim(predict(fit(quick(supervision_metric = "binary_crossentropy"), X, two), X)), c(150, 1))
})

test_that("neighbours count from 1", {
  skip_without_python()
  neighbours <- t(vapply(seq_len(150), function(i) order(colSums((t(X) - X[i, ])^2))[2:6], integer(5)))
  model <- fit(ivis(neighbour_matrix = neighbours, epochs = 2, verbose = 0), X)
  expect_equal(dim(transform(model, X)), c(150, 2))
  expect_error(ivis(neighbour_matrix = neighbours - 1L), "counted from 1")
  neighbours[3, 2] <- 151L
  expect_error(fit(ivis(neighbour_matrix = neighbours), X), "up to 151; X has rows 1 to 150")
})

test_that("sparse matrices of every kind are rows", {
  skip_without_python()
  skip_if_not_installed("Matrix")
  sparse <- Matrix::Matrix(abs(X) * (abs(X) > 1), sparse = TRUE)
  model <- fit(quick(), sparse)
  embedding <- transform(model, sparse)
  expect_equal(dim(embedding), c(150, 2))
  expect_equal(transform(model, sparse[, 4:1]), embedding)
  expect_equal(transform(model, methods::as(sparse, "RsparseMatrix")), embedding)
  expect_equal(transform(model, as.matrix(sparse)), embedding, tolerance = 1e-5)
  expect_equal(transform(model, sparse > 0), transform(model, as.matrix(sparse) > 0), tolerance = 1e-5)
  colnames(sparse)[1] <- "other"
  expect_error(transform(model, sparse), "lacks the columns")
  expect_error(transform(model, methods::as(sparse[1, ], "sparseVector")), "X is a vector")
})

test_that("what is no table of numbers is refused by name", {
  skip_without_python()
  expect_error(fit(ivis(), iris), "Species")
  expect_error(fit(ivis(), Species ~ .), "X is a formula")
  expect_error(fit(ivis(), NULL), "X is NULL")
  expect_error(fit(ivis(), list(1, 2)), "of class list")
  expect_error(fit(ivis(), as.matrix(iris)), "matrix of character")
  expect_error(fit(ivis(), array(0, c(150, 2, 2))), "3 dimensions")
  expect_error(transform(named_model(), X[1, ]), "drop = FALSE")
})
