"""Inference microservice for recurrent networks: HTTP in, outputs and final states out."""

__version__ = "0.1.0"
