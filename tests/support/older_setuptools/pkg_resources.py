"""Stands in for pkg_resources, which RobustBench imports and newer versions of setuptools no longer have."""
