"""Pure loss functions, one family per file, one value per pair."""
