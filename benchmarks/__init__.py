"""Speed and memory beside the field's programs: `make bench`, or `python -m benchmarks NAME`."""
