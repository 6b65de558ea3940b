"""Soft backward passes for any PyTorch module."""
