"""kwbench: the robust accuracy of image classifiers, with the evidence."""
