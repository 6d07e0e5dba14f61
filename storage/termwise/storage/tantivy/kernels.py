"""All compiled loops: importing this compiles them, or loads what was compiled before."""

from __future__ import annotations

from termwise.storage.tantivy import build_kernels, rank_kernels, text_kernels

__all__ = ["build_kernels", "rank_kernels", "text_kernels"]
