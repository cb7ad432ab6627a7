"""The commands that give a set to others and check theirs: export, bundle, verify."""
