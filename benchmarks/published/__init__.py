"""Published code beside ours: repositories that whoever runs the benchmark has fetched, pinned, and never copied in."""
