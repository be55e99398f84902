"""Tools for developers, run from the source tree: the package does not import them and its wheel lacks them."""
