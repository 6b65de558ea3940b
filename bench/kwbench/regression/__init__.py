"""The CI gate: compare robust accuracies on record with a baseline."""
