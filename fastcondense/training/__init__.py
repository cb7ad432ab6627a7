"""Students: one training loop, their scores beside baselines, and the order of a class's images."""
