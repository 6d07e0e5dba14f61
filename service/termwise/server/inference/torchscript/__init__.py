"""Models in ELSER's own package layout: a metadata file, a TorchScript archive and a vocabulary."""
