"""Whether a model became less robust: paired tests on the same samples, against a baseline file or between two models."""
