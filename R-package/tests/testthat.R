library(testthat)
library(ivisspark)

test_check("ivisspark")
