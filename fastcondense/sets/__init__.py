"""Condensed sets as files: shards of a run, bundles, and the sets that others have published."""
