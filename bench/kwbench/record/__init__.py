"""The record of results: database, summaries and comparisons. Nothing here imports torch."""
