"""Termwise's storage port, its adapters, and the suite that every adapter passes."""
