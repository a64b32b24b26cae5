"""What watches a run: evaluation, health, progress, checkpoints."""
