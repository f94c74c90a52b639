"""Long runs and their figures: thin scripts over probekit, started by the Makefile."""
