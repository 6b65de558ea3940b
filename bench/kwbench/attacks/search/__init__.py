"""Search procedures that several attacks share."""
