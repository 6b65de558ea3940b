"""Configuration in YAML: the registry of models, training recipes and suites of attacks, strictly validated."""
