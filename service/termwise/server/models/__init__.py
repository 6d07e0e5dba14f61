"""Trained models: catalogue, sources, artefacts, deployments."""
