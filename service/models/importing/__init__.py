"""Checkpoints of other programs as model folders."""
