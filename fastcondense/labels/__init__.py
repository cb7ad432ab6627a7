"""The stage that makes soft labels: views that are replayed, teachers' answers, stored labels, fingerprints."""
