"""How transformers is imported: late, and by one thread at a time."""

from __future__ import annotations

import threading
from typing import Any, Final

# While it is imported, transformers puts another module in its own place: a second thread that waits for the import
# would go on with the first one, which is empty.
_IMPORTING: Final = threading.Lock()


def import_transformers() -> Any:
    """Give transformers, which takes seconds where nobody has imported it yet."""
    with _IMPORTING:
        import transformers  # noqa: PLC0415

        # Made on the way: its own import of torch and all that hangs on it.
        _ = transformers.AutoModelForMaskedLM
    return transformers
