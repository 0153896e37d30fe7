"""Model folders on disk: what is in them, whether it is sound, and how checkpoints get there."""
