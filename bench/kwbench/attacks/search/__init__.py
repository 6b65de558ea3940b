"""Search procedures, losses and predictions of success that attacks share."""
