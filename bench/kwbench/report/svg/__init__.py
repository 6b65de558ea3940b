"""Drawing: charts and images as SVG files that load nothing."""
