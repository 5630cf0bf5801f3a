"""Mixed precision: a width for each group of sites, so that the loss is small within budgets."""
