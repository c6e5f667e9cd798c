"""What gpu_sampling.py measures: bench (sizes, networks, clocks), parts, rivals, checks, rows."""
