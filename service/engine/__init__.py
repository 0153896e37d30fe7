"""Recurrent arithmetic on one device."""
