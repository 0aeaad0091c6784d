#' Plot an embedding
#'
#' The legend stands to the right of the map. Axes are reset after it: to add points or text to a map, plot it with
#' \code{legend = FALSE}.
#'
#' @param x A fitted model.
#' @param X Rows to embed, as in \code{\link{transform.ivis_spark.estimator.ivis.Ivis}}.
#' @param labels Optional: one value per row. Factors, text and logicals are coloured by class, numbers by a scale, and
#'   rows without a label are grey.
#' @param dims The two dimensions that are shown.
#' @param legend Whether a legend is drawn, if there are labels.
#' @param ... Passed to \code{plot}, for example \code{cex} or \code{main}. With labels, \code{col} is one colour per
#'   class in the order of \code{levels(factor(labels))}, or the colours of the scale of numbers.
#' @return The embedding, invisibly.
#' @aliases plot
#' @rdname plot
#' @rawNamespace S3method(base::plot, ivis_spark.estimator.ivis.Ivis)
#' @examples
#' \dontrun{
#' plot(model, X, iris$Species)
#' }
plot.ivis_spark.estimator.ivis.Ivis <- function(x, X, labels = NULL, dims = c(1, 2), legend = TRUE, ...) {
  if (missing(X)) refuse("pass the rows to plot: plot(model, X), or plot(model, X, labels)")
  others <- setdiff(dots_names(...), setdiff(names(formals(graphics::plot.default)), c("x", "y", "...")))
  if (length(others) > 0) others <- setdiff(others, names(graphics::par()))
  check_no_others("plot()", others, "X, labels, dims, legend and those of graphics::plot and graphics::par")
  if (!isTRUE(legend) && !isFALSE(legend)) refuse("legend must be TRUE or FALSE")
  embedding <- transform(x, X)
  if (length(dims) != 2 || !all(dims %in% seq_len(ncol(embedding)))) {
    refuse("dims is ", toString(dims), "; pass two of the ", ncol(embedding), " dimensions of the embedding")
  }
  if (!is.null(labels) && length(labels) != nrow(embedding)) {
    refuse("labels has ", length(labels), " values for ", nrow(embedding), " rows of X")
  }
  given <- list(...)
  key <- if (!is.null(labels)) colours_of(labels, given$col)
  if (!is.null(key)) given$col <- NULL
  shown <- list(embedding[, dims], col = if (is.null(key)) "black" else key$rows, pch = 16, cex = 0.7, asp = 1)
  shown <- utils::modifyList(shown, given)
  if (!legend || is.null(key$text)) {
    do.call(graphics::plot, shown)
    return(invisible(embedding))
  }
  graphics::plot.new()  # without which no text can be measured
  fits <- legend_that_fits(key)
  before <- graphics::par("mai")
  on.exit(graphics::par(mai = before))
  graphics::par(mai = replace(before, 4, fits$width), new = TRUE)
  do.call(graphics::plot, shown)
  corner <- graphics::par("usr")[c(2, 4)]
  graphics::legend(corner[1], corner[2], legend = fits$text, col = fits$col, ncol = fits$columns, cex = fits$cex,
                   pch = if (length(shown$pch) == 1) shown$pch else 16, bty = "n", xpd = NA)
  invisible(embedding)
}

# The colour of each row, and the lines of the legend with theirs.
colours_of <- function(labels, col) {
  if (is.numeric(labels)) labels[!is.finite(labels)] <- NA
  known <- !is.na(labels)
  if (!any(known)) return(list(rows = "grey70"))
  if (is.numeric(labels)) {
    if (length(col) == 1) refuse("col is one colour; for labels that are numbers pass two or more, as a scale")
    scale <- if (is.null(col)) grDevices::hcl.colors(64) else grDevices::colorRampPalette(col)(64)
    rows <- scale[cut(labels, 64, labels = FALSE)]
    key <- list(text = format(range(labels[known])), col = scale[c(1, 64)])
  } else {
    classes <- factor(labels)
    if (!is.null(col) && length(col) != nlevels(classes)) {
      refuse("col has ", length(col), " colours for ", nlevels(classes), " classes of labels; pass one per class, or ",
             "omit labels for one per row")
    }
    text <- levels(classes)
    long <- nchar(text) > 30
    text[long] <- sub("^(.{17}).*(.{10})$", "\\1...\\2", text[long])
    key <- list(text = text, col = if (is.null(col)) grDevices::hcl.colors(max(2, length(text)), "Dark 3") else col)
    key$col <- key$col[seq_along(text)]
    rows <- key$col[classes]
  }
  rows[!known] <- "grey70"
  if (!all(known)) key <- list(text = c(key$text, "no label"), col = c(key$col, "grey70"))
  c(list(rows = rows), key)
}

# The lines that have room beside the map, in columns as wide as the longest one: at most two fifths of the figure.
legend_that_fits <- function(key) {
  text <- key$text
  for (cex in c(0.8, 0.6)) {
    letter <- graphics::par("cin") * graphics::par("cex") * cex
    rows <- max(1, floor(graphics::par("pin")[2] / letter[2]) - 1)
    wide <- max(graphics::strwidth(c(text, "and 99999 more"), "inches", cex = cex)) + 2 * letter[1]
    columns <- max(1, floor(0.4 * graphics::par("fin")[1] / wide))
    if (length(text) <= rows * columns) break
  }
  col <- key$col
  if (length(text) > rows * columns) {
    last <- if (text[length(text)] == "no label") length(text)
    kept <- c(seq_len(max(0, rows * columns - 1 - length(last))), last)
    text <- c(text[kept], paste("and", length(text) - length(kept), "more"))
    col <- c(col[kept], NA)
  }
  columns <- ceiling(length(text) / rows)
  list(text = text, col = col, columns = columns, cex = cex, width = columns * wide + letter[1])
}
