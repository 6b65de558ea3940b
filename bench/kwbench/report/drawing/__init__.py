"""Figures by matplotlib, which is imported when a figure is drawn: SVG, PDF and PNG, for screens and for papers."""
