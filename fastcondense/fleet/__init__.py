"""Several workers on one run: how they are started, how they draw work, how they end, and what each is doing."""
