"""Charts and images as self-contained SVG files."""
