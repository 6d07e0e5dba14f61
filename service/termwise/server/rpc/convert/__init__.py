"""Conversion between messages and values, in pairs: one module a service."""
