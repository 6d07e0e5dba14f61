import pytest

for _module in ("concurrency", "matching", "persistence", "ranking", "reference", "writing"):
    pytest.register_assert_rewrite(f"termwise.storage.conformance.{_module}")
