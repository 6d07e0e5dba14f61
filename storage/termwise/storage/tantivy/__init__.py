"""The embedded default backend: tantivy, and an exact in-memory accelerator beside it."""
