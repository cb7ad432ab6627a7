"""One run as data: settings by part, TOML, bounds."""
