"""What a run will need before it begins: jobs, memory, disk and time; and the size of job that fits."""
