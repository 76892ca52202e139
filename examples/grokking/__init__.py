"""The experiments of the paper and our own: a project beside the library."""
