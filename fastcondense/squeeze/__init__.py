"""The stage that makes teachers: training, self-supervision, checkpoints of others, and the gate."""
