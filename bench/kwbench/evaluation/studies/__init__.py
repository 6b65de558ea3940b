"""Studies: experiments, sweeps and other series of evaluations, put on record."""
