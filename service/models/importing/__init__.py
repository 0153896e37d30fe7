"""Model folders from the checkpoints of other programs."""
