"""Indices: mappings, life cycle, and the one committer of each."""
