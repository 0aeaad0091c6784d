skip_without_python <- function() {
  skip_if_not(reticulate::py_module_available("ivis_spark"), "Python has no ivis_spark: install_ivis()")
}

X <- scale(as.matrix(iris[, 1:4]))

test_that("arguments are those of Python", {
  skip_without_python()
  named <- setdiff(names(formals(ivis)), "...")
  expect_equal(named, ivis_arguments()[seq_along(named)])
  expect_error(ivis(no_such = 1), "no argument .no_such.; it has: embedding_dims, k")
  expect_identical(ivis(k = 15)$k, 15L)
  expect_identical(ivis(knn_distance_metric = "euclidean")$knn_distance_metric, "euclidean")
})

test_that("a model is fitted, embeds, is saved and loaded", {
  skip_without_python()
  model <- fit(ivis(k = 15, epochs = 5, verbose = 0), X)
  embedding <- transform(model, X)
  expect_equal(dim(embedding), c(150, 2))
  expect_true(all(is.finite(embedding)))
  expect_equal(model$transform(X), embedding)
  expect_equal(transform(model, as.data.frame(X)), embedding)
  path <- file.path(tempfile(), "model")
  dir.create(dirname(path))
  save_ivis(model, path)
  expect_equal(transform(load_ivis(path), X), embedding, tolerance = 1e-6)
})

test_that("factors are classes and NA is unlabelled", {
  skip_without_python()
  labels <- iris$Species
  labels[seq(1, 150, 3)] <- NA
  model <- fit(ivis(k = 15, epochs = 30, verbose = 0), X, labels)
  scores <- predict(model, X)
  expect_equal(dim(scores), c(150, 3))
  expect_equal(colnames(scores), levels(iris$Species))
  path <- file.path(tempfile(), "named.ivis")
  save_ivis(model, path)
  expect_equal(colnames(predict(load_ivis(path), X)), levels(iris$Species))
  expect_gt(mean(max.col(scores) == as.integer(iris$Species)), 0.8)
})

test_that("neighbours count from 1", {
  skip_without_python()
  neighbours <- t(vapply(seq_len(150), function(i) order(colSums((t(X) - X[i, ])^2))[2:6], integer(5)))
  model <- fit(ivis(neighbour_matrix = neighbours, epochs = 2, verbose = 0), X)
  expect_equal(dim(transform(model, X)), c(150, 2))
  expect_error(ivis(neighbour_matrix = neighbours - 1L), "counted from 1")
})

test_that("sparse matrices are rows", {
  skip_without_python()
  skip_if_not_installed("Matrix")
  sparse <- Matrix::Matrix(abs(X) * (abs(X) > 1), sparse = TRUE)
  model <- fit(ivis(k = 15, epochs = 2, verbose = 0), sparse)
  expect_equal(dim(transform(model, sparse)), c(150, 2))
})

test_that("what is not numeric is refused by name", {
  skip_without_python()
  expect_error(fit(ivis(), iris), "Species")
})
