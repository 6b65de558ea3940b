"""Evaluations and experiments from request to record."""
