"""Relaxation rules, one module for each kind of operation."""
