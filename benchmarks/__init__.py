"""Speed and memory beside the field's other programs: `make bench`, or `python -m benchmarks NAME`."""
