"""The plan of a run: the jobs, memory, disk and time that it will need, from a short measurement."""
