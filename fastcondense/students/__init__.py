"""The stages that train students and score them: arms, baselines, sizes, DD-Ranking."""
