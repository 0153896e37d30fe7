"""Model folders on disk: reading them, checking them, and making them from checkpoints."""
