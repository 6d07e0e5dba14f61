"""Termwise's server: learned sparse retrieval over gRPC."""
