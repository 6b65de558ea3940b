"""What users write: registry, recipes and suites, as YAML, validated strictly."""
