"""Model repositories: where a model's files come from, one class a URI scheme."""
