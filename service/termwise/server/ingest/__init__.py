"""From a document to a write: pipelines, processors, streams."""
