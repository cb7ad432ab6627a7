"""Condensed sets as files: shards of a run, bundles, imports and exports."""
