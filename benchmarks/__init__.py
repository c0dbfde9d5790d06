"""What is measured: ``python -m benchmarks`` prints all figures of one run on one machine."""
