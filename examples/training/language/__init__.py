"""A language model on the standard library's sources: one run, a comparison, an ablation."""
