"""Real images: published data sets, their loaders, and batches of them on the device."""
